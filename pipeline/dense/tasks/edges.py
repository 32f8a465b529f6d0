"""Edges: where one thing ends and another begins."""

from __future__ import annotations

from torch import Tensor

from archipelago.pipeline.dense.base import DenseTask, Metric, register
from archipelago.pipeline.dense.boundary import BoundaryF
from archipelago.pipeline.dense.losses import balanced_bce

POSITIVE = 0.95  # weight of an edge pixel in the benchmark's loss


@register
class Edges(DenseTask):
    """Cross-entropy with the benchmark's weight of edge pixels; optimal-dataset-scale F."""

    kind = "edges"
    weight = 50.0

    @property
    def channels(self) -> int:
        """One logit."""
        return 1

    def loss(self, output_BOSS: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with edges weighted 0.95 to 0.05."""
        return balanced_bce(output_BOSS, targets, positive=POSITIVE)

    def metric(self) -> Metric:
        """F at the best threshold of the data set."""
        return BoundaryF()
