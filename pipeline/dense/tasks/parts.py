"""Part segmentation: the part of a body at every pixel, 0 = none."""

from __future__ import annotations

from torch import Tensor

from archipelago.pipeline.dense.base import DenseTask, Metric, register
from archipelago.pipeline.dense.losses import cross_entropy, without_empty
from archipelago.pipeline.dense.regions import MeanIoU


@register
class Parts(DenseTask):
    """As semantic segmentation; images that show no part are left out of loss and metric."""

    kind = "parts"
    weight = 2.0

    @property
    def channels(self) -> int:
        """One a part, and one for none."""
        return self.classes

    def loss(self, output_BOSS: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the images that show a part."""
        return cross_entropy(output_BOSS, without_empty(targets))

    def metric(self) -> Metric:
        """mIoU of all parts and of none, in images that show one."""
        return MeanIoU(self.classes, skip_empty=True)
