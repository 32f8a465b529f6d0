"""Head and group of a task as one answer: equal parts, log-linearly, each at its own temperature.

`log p = m (1/2 log p_head / T_h + 1/2 log p_group / T_g)`, normalised (method 7.4).

Shapes: B images, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from archipelago.pipeline.methods.base import log_softmax

TEMPERATURES = np.geomspace(0.25, 4.0, 33)
SHARPNESSES = np.linspace(1.0, 2.0, 21)


@dataclass(frozen=True)
class Blend:
    """Temperatures of both sides, and the sharpness of the mixture."""

    head: float = 1.0
    group: float = 1.0
    sharpness: float = 1.0

    def asdict(self) -> dict[str, float]:
        """Plain data for a record."""
        return asdict(self)

    def __call__(self, head_BC: np.ndarray, group_BC: np.ndarray) -> np.ndarray:
        """Log-probabilities (B, C); classes that the head does not know stay impossible."""
        mixed = 0.5 * head_BC / self.head + 0.5 * group_BC / self.group
        return log_softmax(self.sharpness * mixed)


def fit_blend(head_BC: np.ndarray, group_BC: np.ndarray, labels_B: np.ndarray) -> Blend:
    """The blend of the best log-likelihood on images that neither side has seen."""
    at = np.arange(len(labels_B))

    def best(scores: np.ndarray, factors: np.ndarray) -> float:
        losses = [-log_softmax(scores * factor)[at, labels_B].mean() for factor in factors]
        return float(factors[int(np.argmin(losses))])

    head, group = (1.0 / best(side, 1.0 / TEMPERATURES) for side in (head_BC, group_BC))
    mixed = 0.5 * head_BC / head + 0.5 * group_BC / group
    return Blend(head, group, best(mixed, SHARPNESSES))
