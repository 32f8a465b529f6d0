"""What an image may be: names and pairs of domain and name, matched with what was learned.

A pair is known if its domain was learned with such a class; a bare name if a class of some domain
has it, exactly after NFC, else case- and space-folded where that fits one class of the domain only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from archipelago.pipeline.records import ClassList, Prompted, TaskRecord
from archipelago.pipeline.records.classes import TEMPLATES


class Candidate(NamedTuple):
    """A name, alone or of one domain; templates say how CLIP reads it where nobody learned it."""

    name: str
    task: str | None = None
    templates: tuple[str, ...] = TEMPLATES


class Known(NamedTuple):
    """A class that was learned: its domain and its place there."""

    task: str
    number: int


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates after matching.

    Attributes:
        known: learned classes among them, each once.
        outside: what only CLIP can score: unlearned pairs, unknown names, and all bare names.
        unknown: (len(outside),) which of these nobody learned.
        names: the distinct names, in the order in which they were asked for.
        of_known, of_outside: place in `names` of each.
    """

    known: tuple[Known, ...]
    outside: tuple[Candidate, ...]
    unknown: np.ndarray
    names: tuple[str, ...]
    of_known: np.ndarray
    of_outside: np.ndarray

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Learned domains with a candidate, by name."""
        return tuple(sorted({item.task for item in self.known}))

    @cached_property
    def columns(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Per domain: which of `known` are its, and their places in its class list."""
        at: dict[str, list[int]] = {task: [] for task in self.tasks}
        for i, item in enumerate(self.known):
            at[item.task].append(i)
        return {
            task: (np.array(rows), np.array([self.known[i].number for i in rows]))
            for task, rows in at.items()
        }

    @cached_property
    def listed(self) -> ClassList:
        """`outside` as CLIP reads it."""
        return tuple(Prompted(item.name, item.templates) for item in self.outside)


def match(
    asked: Sequence[Candidate] | None, records: Mapping[str, TaskRecord], task: str | None = None
) -> Candidates:
    """Match candidates with what was learned: domains in order of their names, so that the order
    in which they were learned decides no tie.

    Args:
        asked: None = every class of every learned domain, or of the given one.
        records: learned domains.
        task: the domain, where it is given: classes of others are then unknown.
    """
    wanted = sorted(records) if task is None else [task] if task in records else []
    searched = {name: records[name] for name in wanted}
    if asked is None:
        pairs = [(Known(n, i), c) for n, r in searched.items() for i, c in enumerate(r.classes)]
        return _candidates([pair for pair, _ in pairs], [name for _, name in pairs], [], [], [])
    known: dict[Known, str] = {}
    outside: dict[Candidate, bool] = {}
    order: list[str] = []
    for item in asked:
        order.append(item.name)
        within = searched if item.task is None else _only(searched, item.task)
        found = [Known(n, i) for n, r in within.items() if (i := place(r, item.name)) is not None]
        for pair in found:
            known.setdefault(pair, item.name)
        if item.task is None or not found:
            outside.setdefault(item, not found)
    return _candidates(
        list(known), list(known.values()), list(outside), list(outside.values()), order
    )


def _only(records: Mapping[str, TaskRecord], task: str) -> dict[str, TaskRecord]:
    return {task: records[task]} if task in records else {}


def _candidates(
    known: list[Known],
    names: list[str],
    outside: list[Candidate],
    unknown: list[bool],
    order: Iterable[str],
) -> Candidates:
    listed = tuple(dict.fromkeys([*order, *names]))
    where = {name: index for index, name in enumerate(listed)}
    return Candidates(
        tuple(known),
        tuple(outside),
        np.array(unknown, dtype=bool),
        listed,
        np.array([where[name] for name in names], dtype=np.int64),
        np.array([where[item.name] for item in outside], dtype=np.int64),
    )


def place(record: TaskRecord, name: str) -> int | None:
    """Where a name is in a domain's class list, None if it is not."""
    if "places" not in record.derived:
        exact: dict[str, list[int]] = {}
        folded: dict[str, list[int]] = {}
        for index, known in enumerate(record.classes):
            exact.setdefault(unicodedata.normalize("NFC", known), []).append(index)
            folded.setdefault(_folded(known), []).append(index)
        record.derived["places"] = exact, folded
    exact, folded = record.derived["places"]
    found = exact.get(unicodedata.normalize("NFC", name)) or folded.get(_folded(name), [])
    return found[0] if len(found) == 1 else None


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
