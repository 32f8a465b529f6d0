"""What a domain of the atlas is: names, templates and a pure function that paints one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import Dice


@dataclass(frozen=True)
class Request:
    """Which image to paint: the `ordinal`-th image of class `label` in a split."""

    seed: int
    split: str
    label: int
    ordinal: int


@dataclass(frozen=True)
class Scene:
    """One rendered domain. `paint` returns uint8 (64, 64, 3) and throws no dice but its own."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    paint: Callable[[Request, Dice], np.ndarray]
    source: str = "rendered by archipelago"
    licence: str = "Apache-2.0"

    def render(self, seed: int, split: str, index: int) -> tuple[np.ndarray, int]:
        """Image `index` of a split and its label; labels take turns, so every class is as frequent.

        Returns:
            uint8 (64, 64, 3) and the label. A pure function of its arguments: train and test images
            differ because the split is part of the dice's key.
        """
        ordinal, label = divmod(index, len(self.classes))
        dice = Dice("atlas", seed, self.name, split, index)
        return self.paint(Request(seed, split, label, ordinal), dice), label
