"""Surface normals: which way the surface at every pixel faces."""

from __future__ import annotations

from torch import Tensor

from archipelago.pipeline.dense.angles import MeanAngle
from archipelago.pipeline.dense.base import DenseTask, Metric, register
from archipelago.pipeline.dense.losses import normals_loss


@register
class Normals(DenseTask):
    """L1 between unit vectors; mean angular error."""

    kind = "normals"
    weight = 10.0

    @property
    def channels(self) -> int:
        """x, y, z."""
        return 3

    def loss(self, output_BOSS: Tensor, targets: Tensor) -> Tensor:
        """L1 between unit vectors."""
        return normals_loss(output_BOSS, targets)

    def metric(self) -> Metric:
        """Mean angle."""
        return MeanAngle()
