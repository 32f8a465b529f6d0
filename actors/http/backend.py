"""Who answers: the contract between the HTTP application and the model, wherever that runs.

What goes over the wire is plain: arrays of pixels, names and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from archipelago.pipeline.learned.asking import Answer, Ask


@dataclass(frozen=True)
class Reply:
    """One request's answers.

    Attributes:
        generation: who answered.
        answers: one an image.
        milliseconds: of each part of the pass that answered it.
        unknown: a domain that was asked for and is not learned; then there are no answers.
        again: how often the request had to be sent again.
        consulted: images that the multimodal model was asked about.
        late: those of them without an answer in time; the signatures decided.
    """

    generation: int
    answers: tuple[Answer, ...] = ()
    milliseconds: dict[str, float] = field(default_factory=dict)
    unknown: str | None = None
    again: int = 0
    consulted: int = 0
    late: int = 0


@dataclass(frozen=True, eq=False)
class Vectors:
    """One request's images and texts as normalised vectors of frozen CLIP, float32.

    Attributes:
        generation: who answered.
        backbone: frozen CLIP's name.
        images: (B, F), (0, 0) where there were none.
        texts: (N, F), the same.
        milliseconds: of each part.
        again: how often the request had to be sent again.
    """

    generation: int
    backbone: str
    images: np.ndarray
    texts: np.ndarray
    milliseconds: dict[str, float] = field(default_factory=dict)
    again: int = 0


class Backend(Protocol):
    """What the application needs; every method may raise `Problem`."""

    async def image_size(self) -> int:
        """Side of the model's input, in pixels."""
        ...

    async def classify(self, images: np.ndarray, asks: Sequence[Ask]) -> Reply:
        """Answer for uint8 images (B, S, S, 3)."""
        ...

    async def embed(self, images: np.ndarray, texts: Sequence[str]) -> Vectors:
        """Vectors of uint8 images (B, S, S, 3) and of texts."""
        ...

    async def describe(self) -> dict[str, Any]:
        """Generation, manifest, backbone, history and tasks."""
        ...

    async def lineage(self, task: str) -> dict[str, Any] | None:
        """Where a learned domain comes from; None if it is not learned."""
        ...

    async def example(self, task: str, index: int) -> bytes | None:
        """A stored image of a domain as PNG; None if there is none."""
        ...

    async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Publish, roll back or forget."""
        ...
