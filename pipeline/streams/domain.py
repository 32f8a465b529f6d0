"""What a stream is made of: rows, chunks of rows, splits, domains, and the reader of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class RawRow:
    """One row as its source holds it.

    `image` is an encoded file (bytes), an already decoded array `(H, W, 3)` uint8, or None where
    the source has nothing. `label` is None where the source has none.
    """

    index: int
    image: bytes | np.ndarray | None
    label: int | None


class Chunk(Protocol):
    """A range of rows that one task reads: picklable, cheap to ship, the same rows every time."""

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows in order; a source that cannot be read at all raises OSError."""
        ...


@dataclass(frozen=True)
class Split:
    """The rows of one split. `digest` is a sha256 of their content, not of where they lie."""

    name: str
    chunks: tuple[Chunk, ...]
    count: int
    digest: str


@dataclass(frozen=True)
class Domain:
    """One task of the stream: its classes, prompt templates (each holds `{}`) and splits."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    splits: Mapping[str, Split]
    source: str
    licence: str


class Reader(Protocol):
    """A source of domains. One file in `readers/` that registers a factory by name."""

    def names(self) -> list[str]:
        """All domains on offer, alphabetical."""
        ...

    def domain(self, name: str) -> Domain:
        """Describe one domain without decoding an image; raises UserError for bad input."""
        ...
