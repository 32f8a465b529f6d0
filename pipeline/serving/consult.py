"""A second opinion on which domain an image is from, for identifiers that look.

The answer of the signatures is always there first. Of the images that they are unsure about, a
multimodal model may be asked beside the pass; whatever comes late counts as no opinion. That an
image is none of the domains' is for the signatures alone to say; which groups then speak beside
frozen CLIP is the model's word too, where the run's identifier heeds it.

Shapes: n images that are asked about, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.identifiers import Identification, Identifier
from pipeline.model.fusion import likeliest


@dataclass(frozen=True, eq=False)
class Doubt:
    """An image on which the run's identifier wants the model's word.

    Attributes:
        row: its place among the images of its batch.
        whole: the run's identifier in the generation that answered, without a model of its own.
        found: what the signatures say of this one image.
        groups: how many groups may speak for it, should it be none of the domains'.
    """

    row: int
    whole: Identifier
    found: Identification
    groups: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model compares the image with: the tasks in words."""
        return self.whole.texts


@dataclass(frozen=True)
class Told:
    """What is held of an image with the model's word.

    Attributes:
        task: its domain; None = none of them.
        confidence: probability of that.
        shares: (domain, share) of the groups that speak for an image of no domain.
    """

    task: str | None
    confidence: float
    shares: tuple[tuple[str, float], ...] = ()


def doubts_of(
    whole: Identifier, found: Identification, rows: np.ndarray, groups: int = 0
) -> list[Doubt]:
    """The images worth asking about.

    Args:
        whole: the run's identifier.
        found: what the signatures say of R images.
        rows: (R,) their places in the batch.
        groups: how many groups speak for an image of no domain; 0 = frozen CLIP alone, and then
            nobody needs to know which domain is the nearest.
    """
    return [
        Doubt(int(rows[at]), whole, found.rows([at]), groups)
        for at in whole.doubted(found).tolist()
        if found.chosen[at] >= 0 or groups
    ]


def settle(doubts: Sequence[Doubt], scores: np.ndarray) -> list[Told]:
    """Domain and confidence of each image, with the model's word.

    Args:
        doubts: n of one generation.
        scores: (n, T) of the model; a row of NaN was not answered.
    """
    settled = []
    for doubt, row in zip(doubts, scores, strict=True):
        told = doubt.whole.settled(doubt.found, np.zeros(1, np.int64), row[None].astype(float))
        option = int(told.chosen[0])
        confidence = float(told.probabilities[0, option])
        if option >= 0:
            settled.append(Told(told.options[option], confidence))
        else:
            settled.append(Told(None, confidence, speakers(told, doubt.groups)[0]))
    return settled


def speakers(found: Identification, groups: int) -> list[tuple[tuple[str, float], ...]]:
    """Of each of B images the `groups` likeliest domains with their shares, which sum to 1."""
    order, shares = likeliest(found.shares, groups)
    shares = shares / shares.sum(axis=1, keepdims=True)
    return [
        tuple((found.options[o], float(share)) for o, share in zip(*each, strict=True))
        for each in zip(order.tolist(), shares.tolist(), strict=True)
    ]
