"""What was computed of a batch of images: what answers are made from, wherever that happens.

A replica has a view of the images of its requests, evaluation one of stored features; answers are
made from either by the same code (`pipeline/learned/answering.py`).

Shapes: B images, P pairs of image and function, K compact features, F embedding, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from archipelago.pipeline.records import ClassList


class Function(NamedTuple):
    """What answers for a task: its name, and the task whose stage left the weights that are used.

    A method whose weights are shared names the newest stage, so that its forgetting shows. Without
    weights a function is a closed form on compact features and needs no pass of its own.
    """

    task: str
    weights: str | None


class View(ABC):
    """Features of B images.

    Attributes:
        compact: (B, K) compact features of frozen CLIP.
        frozen: (B, F) normalised image features of frozen CLIP.
    """

    compact: np.ndarray
    frozen: np.ndarray

    def __len__(self) -> int:
        return len(self.compact)

    @abstractmethod
    def prepare(self, pairs: Sequence[tuple[int, Function]]) -> None:
        """Compute features of some images (by row) under some functions, all in one go."""

    @abstractmethod
    def features(self, function: Function) -> np.ndarray:
        """Normalised image features (B, F) under a function with weights."""

    @abstractmethod
    def text(self, listed: ClassList, function: Function | None) -> np.ndarray:
        """Class features (C, F) under a function, None = frozen CLIP."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> View:
        """Of some of the images, by row."""
