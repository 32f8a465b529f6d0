"""The settings in words, for a terminal: every key of `conf/` with its default and its comment.

Read from the files as text, so that an explanation stands once, where the value is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONF = Path(__file__).resolve().parents[1] / "conf"
ROOT = CONF / "sequence.yaml"
_CHOICE = re.compile(r"  - ([a-z]+): (\S+)")
_BASE = re.compile(r"^  - (?!_self_)([\w-]+)$", re.M)
_ENTRY = re.compile(r"( *)([\w.-]+):(?: +(.*))?$")
_COMMENT = re.compile(r"(?:^|\s+)#\s?(.*)$")


class Entry(NamedTuple):
    """A setting: its dotted key, its default as it is written, and what is said of it."""

    key: str
    value: str
    about: str


def groups() -> dict[str, str]:
    """The groups of settings and the file that each takes by default."""
    found = map(_CHOICE.match, ROOT.read_text().splitlines())
    return {choice[1]: choice[2] for choice in found if choice}


def options(group: str) -> list[str]:
    """The files of one group: what may stand on the right of `group=`.

    Files that begin with an underscore hold what others have in common.
    """
    return sorted(file.stem for file in (CONF / group).glob("[!_]*.yaml"))


def entries(group: str | None = None) -> list[Entry]:
    """Settings of a group, or those that belong to none.

    They are those of the group's default file; what only other files have follows, and is said to
    be theirs. A file's own `options` are left to it.
    """
    if group is None:
        text = ROOT.read_text()
        return list(_read(text[text.index("- _self_") :], ""))
    found = _inherited(group, groups()[group])
    others: dict[str, list[str]] = {}
    for option in options(group):
        for key in _inherited(group, option):
            if key not in found and not key.startswith(f"{group}.options"):
                others.setdefault(key, []).append(option)
    for key, files in others.items():
        entry = _inherited(group, files[0])[key]
        found[key] = entry._replace(about=f"({' or '.join(files)}) {entry.about}")
    return list(found.values())


def _inherited(group: str, option: str) -> dict[str, Entry]:
    """Entries of a file by key, with those of the files that it says it differs from."""
    found: dict[str, Entry] = {}
    text = (CONF / group / f"{option}.yaml").read_text()
    for base in _BASE.findall(text):
        found |= _inherited(group, base)
    for entry in _read(text, f"{group}."):
        about = entry.about or (found[entry.key].about if entry.key in found else "")
        found[entry.key] = entry._replace(about=about)
    return found


def _read(text: str, start: str) -> Iterator[Entry]:
    """Entries of a YAML file in its order; sections give their keys a prefix."""
    sections: list[tuple[int, str]] = []
    before: list[str] = []  # comments of their own that come before a key
    last: Entry | None = None
    for line in text.splitlines():
        comment = _COMMENT.search(line)
        said = comment[1].strip() if comment else ""
        code = line[: comment.start()].rstrip() if comment else line.rstrip()
        found = _ENTRY.match(code)
        if found is None:
            if comment and last is not None and len(line) - len(line.lstrip()) > 8:
                last = last._replace(about=f"{last.about} {said}")  # a comment goes on
            elif comment and said:
                before.append(said)
            else:
                before = []
            continue
        if last is not None:
            yield last
        last = None
        indent, key, value = len(found[1]), found[2], found[3]
        sections = [(depth, name) for depth, name in sections if depth < indent]
        if value is None:
            sections.append((indent, key))
        elif key != "defaults":
            name = ".".join([*(name for _, name in sections), key])
            last = Entry(f"{start}{name}", value, said or " ".join(before))
        before = []
    if last is not None:
        yield last
