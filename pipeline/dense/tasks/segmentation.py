"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

from torch import Tensor

from archipelago.pipeline.dense.base import DenseTask, Metric, register
from archipelago.pipeline.dense.losses import cross_entropy
from archipelago.pipeline.dense.regions import MeanIoU


@register
class Segmentation(DenseTask):
    """Cross-entropy; mIoU over the classes that occur."""

    kind = "segmentation"

    @property
    def channels(self) -> int:
        """One a class."""
        return self.classes

    def loss(self, output_BOSS: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled pixels."""
        return cross_entropy(output_BOSS, targets)

    def metric(self) -> Metric:
        """mIoU of all classes."""
        return MeanIoU(self.classes)
