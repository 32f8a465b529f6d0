"""A second opinion on which domain an image is from, for multimodal identifiers.

The answer of the statistics is always there first. Of the images that they are unsure about, a
multimodal model may be asked beside the pass; whatever comes late counts as no opinion. How new an
image is, is for the statistics alone to say.

Shapes: n images that are asked about, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.identifiers import Identification, Identifier

ConsultResult = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class ConsultRequest:
    """An image on which the run's identifier wants the model's word.

    Attributes:
        row: its place among the images of its batch.
        whole: the run's identifier in the generation that answered, without a model of its own.
        found: what the statistics say of this one image.
    """

    row: int
    whole: Identifier
    found: Identification

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model compares the image with: the tasks in words."""
        return self.whole.texts


def consult_requests(
    whole: Identifier, found: Identification, rows: np.ndarray
) -> list[ConsultRequest]:
    """The images worth asking about.

    Args:
        whole: the run's identifier.
        found: what the statistics say of R images.
        rows: (R,) their places in the batch.
    """
    return [
        ConsultRequest(int(rows[at]), whole, found.rows([at]))
        for at in whole.to_consult(found).tolist()
    ]


def consult_results(unsure: Sequence[ConsultRequest], scores: np.ndarray) -> list[ConsultResult]:
    """Log shares of all tasks for each image, with the model's word.

    Args:
        unsure: n images of one generation.
        scores: (n, T) of the model; a row of NaN was not answered.
    """
    settled = []
    for request, row in zip(unsure, scores, strict=True):
        answer = request.whole.with_scores(
            request.found, np.zeros(1, np.int64), row[None].astype(float)
        )
        settled.append(tuple(zip(answer.options, answer.log_shares[0].tolist(), strict=True)))
    return settled
