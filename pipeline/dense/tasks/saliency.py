"""Saliency: what a person looks at first."""

from __future__ import annotations

from torch import Tensor

from archipelago.pipeline.dense.base import DenseTask, Metric, register
from archipelago.pipeline.dense.losses import balanced_bce
from archipelago.pipeline.dense.regions import Saliency as SaliencyMetric


@register
class Saliency(DenseTask):
    """Cross-entropy balanced by the batch's share of salient pixels; ASTMT's mIoU and maxF."""

    kind = "saliency"
    weight = 5.0

    @property
    def channels(self) -> int:
        """One logit."""
        return 1

    def loss(self, output_BOSS: Tensor, targets: Tensor) -> Tensor:
        """Balanced cross-entropy."""
        return balanced_bce(output_BOSS, targets, positive=None)

    def metric(self) -> Metric:
        """mIoU and maxF over thresholds."""
        return SaliencyMetric()
