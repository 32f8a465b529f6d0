"""Settings that are written down load: in `conf/`, documents, docstrings of jobs, `deploy/`."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from archipelago import cli
from archipelago.actors.manual import is_own
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.config import load
from tests.unit.test_config import OPTIONS, REQUIRED
from tests.unit.test_readme import COMMANDS, ROOT

# Their words are no settings, or not only `key=value`.
OWN_GRAMMAR = {"heads", "identify", "pretrain"}
OWN_GRAMMAR |= {"bench_experts", "bench_growth", "bench_hostile", "bench_serving"}
Written = tuple[str, str, list[str]]  # where, of which job, its words


def options() -> Iterator[Written]:
    """Every file of every group."""
    for group, option in OPTIONS:
        words = [f"{group}={option}", *REQUIRED.get(group, {}).get(option, [])]
        yield f"conf/{group}/{option}.yaml", "sequence", words


def examples() -> Iterator[tuple[str, list[str]]]:
    """Commands in documents, in comments of settings files, in docstrings of jobs, in `deploy/`."""
    yield from COMMANDS
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        yield from lines(file, re.sub(r"^#", "", file.read_text(), flags=re.M))
    for file in sorted((ROOT / "jobs").glob("[!_]*.py")):
        yield from lines(file, ast.get_docstring(ast.parse(file.read_text())) or "")
    for file in sorted((ROOT / "deploy").rglob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if entrypoint := document.get("spec", {}).get("entrypoint"):
                yield file.name, shlex.split(entrypoint)


def lines(file: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Indented commands that run a job."""
    for line in re.findall(r"^ +(python jobs/.*)$", text.replace("\\\n", " "), re.M):
        yield file.name, shlex.split(line)


def of_jobs() -> Iterator[Written]:
    """What is told to jobs, by their file or as a verb."""
    for where, words in examples():
        at = next((i for i, word in enumerate(words) if re.search(r"jobs/\w+\.py$", word)), None)
        if at is not None:
            job, words = Path(words[at]).stem, words[at + 1 :]
        elif words[0] == "archipelago":
            job, words = cli.VERBS[words[1]], words[2:]
        else:
            continue
        if job not in OWN_GRAMMAR:
            yield where, job, [word for word in words if word not in ("...", "--help", "--keep")]


WRITTEN = [*options(), *of_jobs()]


def test_much_is_written() -> None:
    assert len({where for where, *_ in WRITTEN}) > len(OPTIONS) + 30
    assert {"README.md", "rayjob.yaml", "parquet.yaml", "forget.py"} <= {w for w, *_ in WRITTEN}
    assert all((ROOT / "jobs" / f"{job}.py").exists() for job in OWN_GRAMMAR)


@pytest.mark.parametrize(("where", "job", "words"), WRITTEN, ids=lambda value: str(value)[:60])
def test_it_loads(where: str, job: str, words: list[str]) -> None:
    module = importlib.import_module(f"archipelago.jobs.{job}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    own = next((kind for kind in kinds if is_own(kind, module)), Words)
    _, rest = read_words(words, own, settings=getattr(module, "SETTINGS", True))
    settings = load(rest)
    learns = job == "sequence" and where.endswith((".md", "rayjob.yaml"))
    assert settings.run_dir or not learns, f"{where}: a command without run_dir would not start"
