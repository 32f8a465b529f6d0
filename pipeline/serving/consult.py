"""A second opinion on which domain an image is from, for identifiers that look.

The answer of the signatures is always there first. Of the images that they are unsure about, a
multimodal model may be asked beside the pass; whatever comes late counts as no opinion.

Shapes: n images that are asked about, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.identifiers import Identification, Identifier


@dataclass(frozen=True, eq=False)
class Doubt:
    """An image of a learned domain, of which the signatures are not sure.

    Attributes:
        row: its place among the images of its batch.
        whole: the run's identifier in the generation that answered, without a model of its own.
        found: what the signatures say of this one image.
    """

    row: int
    whole: Identifier
    found: Identification

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model compares the image with: the tasks in words."""
        return self.whole.texts


def doubts_of(whole: Identifier, found: Identification, rows: np.ndarray) -> list[Doubt]:
    """The images worth asking about; those of no learned domain stay with frozen CLIP.

    Args:
        whole: the run's identifier.
        found: what the signatures say of R images.
        rows: (R,) their places in the batch.
    """
    return [
        Doubt(int(rows[at]), whole, found.rows([at]))
        for at in whole.doubted(found).tolist()
        if found.chosen[at] >= 0
    ]


def settle(doubts: Sequence[Doubt], scores: np.ndarray) -> list[tuple[str, float]]:
    """Domain and confidence of each image, with the model's word.

    Args:
        doubts: n of one generation.
        scores: (n, T) of the model; a row of NaN was not answered.
    """
    settled = []
    for doubt, row in zip(doubts, scores, strict=True):
        told = doubt.whole.settled(doubt.found, np.zeros(1, np.int64), row[None].astype(float))
        option = int(told.chosen[0])
        settled.append((told.options[option], float(told.probabilities[0, option])))
    return settled
