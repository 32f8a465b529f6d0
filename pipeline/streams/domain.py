"""What a stream is made of: rows, chunks of rows, splits, domains, and the reader of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from archipelago.pipeline.streams.targets import Target, Unusable

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class RawRow:
    """One row as its source holds it.

    `image` is an encoded file (bytes), an already decoded array `(H, W, 3)` uint8, or None where
    the source has nothing. `label` is None where the source has none. `targets` are those of the
    split's dense tasks by name, in the image's geometry, or the reason why there is none. `fault`
    says why there is no image, where the source knows.
    """

    index: int
    image: bytes | np.ndarray | None
    label: int | None
    targets: Mapping[str, np.ndarray | Unusable] = field(default_factory=dict)
    fault: str = ""


class Chunk(Protocol):
    """A range of rows that one task reads: picklable, cheap to ship, the same rows every time."""

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows in order; a source that cannot be read at all raises OSError."""
        ...


@runtime_checkable
class Named(Protocol):
    """A chunk whose rows have names in their source, for the quarantine table."""

    def files(self, rows: Collection[int]) -> dict[int, str]:
        """The file, or path, of each of these rows that the chunk holds."""
        ...


class LeftOut(NamedTuple):
    """A file of a domain that is not used at all; it is listed in the quarantine table.

    `split` is empty where files are dealt into splits and this one was not.
    """

    split: str
    file: str
    reason: str


@dataclass(frozen=True)
class Split:
    """The rows of one split. `digest` is a sha256 of their content, not of where they lie.

    `targets` are the dense tasks for which the rows hold something; domains that share the rows
    share the split, and so the cache. `groups` has a number for each row: rows of one number belong
    together (`streams/groups.py`); None where nothing says so.
    """

    name: str
    chunks: tuple[Chunk, ...]
    count: int
    digest: str
    targets: tuple[Target, ...] = ()
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Part:
    """What a task has of a domain that it does not have all of.

    Attributes:
        domain: the domain's name.
        of: number of the domain's classes: what its rows' labels tell apart.
        classes: which of them are the task's, ascending.
        shots: training images of each class; None = all.
        seed: the run's: which images these are follows from it and from the domain's name.
    """

    domain: str
    of: int
    classes: tuple[int, ...]
    shots: int | None
    seed: int


@dataclass(frozen=True)
class Domain:
    """One task of the stream: its classes, prompt templates (each holds `{}`) and splits.

    A dense task has a `kind` of `streams.targets.KINDS`, and its name is that of a target of its
    splits; it needs no templates, and normals have no classes. `left_out` are files that lie where
    images do and cannot be taken for one. Tasks that have a `part` of the same domain share its
    splits; `classes` are then those of the part.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    splits: Mapping[str, Split]
    source: str
    licence: str
    kind: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    part: Part | None = None

    @property
    def labels(self) -> int:
        """Number of classes that the labels of its rows tell apart."""
        return len(self.classes) if self.part is None else self.part.of


class Reader(Protocol):
    """A source of domains. One file in `readers/` that registers a factory by name."""

    def names(self) -> list[str]:
        """All domains on offer, alphabetical."""
        ...

    def domain(self, name: str) -> Domain:
        """Describe one domain without decoding an image; raises UserError for bad input."""
        ...
