"""What the documents tell a person to type exists and parses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from archipelago.pipeline import config, handbook
from archipelago.pipeline.settings import Settings, fields_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """The commands of all `sh` blocks, as words: continued lines joined, comments left out."""
    found = []
    for block in re.findall(r"^ *```sh\n(.*?)```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.append(words)
    return found


def anchors(text: str) -> set[str]:
    """Places in a document that a link can name: its headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def told() -> Iterator[tuple[str, list[str]]]:
    for document in DOCUMENTS:
        for words in commands(document.read_text()):
            yield document.name, words


COMMANDS = list(told())


def test_there_are_commands() -> None:
    assert len([words for _, words in COMMANDS if "jobs/sequence.py" in words]) >= 8
    assert ["make", "demo"] in [words for _, words in COMMANDS]


@pytest.mark.parametrize(("document", "words"), COMMANDS, ids=lambda value: str(value)[:60])
def test_programs_and_targets_exist(document: str, words: list[str]) -> None:
    known = {"make", "python", "ray", "curl", "docker", "kubectl", "serve", "pip", "archipelago"}
    program = next(word for word in words if "=" not in word)  # before it: environment
    assert program in known or program.startswith(".venv/bin/"), f"{document}: {program}?"
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
    for word in words:
        if word.endswith(".py") or word.startswith(("tests/", "docs/", "conf/", "deploy/")):
            assert (ROOT / word).exists(), f"{document}: no {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_keys_and_links_in_the_text_exist(document: Path) -> None:
    text = document.read_text()
    for key in re.findall(rf"`((?:{'|'.join(Settings.model_fields)})\.[a-z_.]+)", text):
        if key == "serving.json":  # a file of the run folder
            continue
        node = Settings.model_fields[key.split(".")[0]].annotation
        for part in key.rstrip(".").split(".")[1:]:
            fields = fields_of(node)
            if not fields:
                break
            assert part in fields, f"{document.name}: no setting {key}"
            node = fields[part].annotation
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", text):
        file, _, place = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), f"{document.name}: no {link}"
        assert not place or place in anchors(target.read_text()), f"{document.name}: no {link}"
    for folder in re.findall(r"`((?:conf|pipeline|tests|jobs|docs|deploy)/[\w/.-]*)`", text):
        mine = folder.endswith("mine.py")
        assert mine or (ROOT / folder).exists(), f"{document.name}: no {folder}"


def test_the_table_of_settings_lists_every_group_and_option() -> None:
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", (ROOT / "docs/settings.md").read_text(), re.M)
    told = {
        group: set(re.findall(r"`([^`]+)`", options))
        for groups, options in rows
        for group in re.findall(r"`([^`]+)`", groups)
        if group in config.known_groups()
    }
    assert told == {group: set(handbook.options(group)) for group in config.known_groups()}


def test_the_exit_codes_are_those_of_the_code() -> None:
    from archipelago.pipeline import errors

    text = (ROOT / "docs/settings.md").read_text()
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)}
