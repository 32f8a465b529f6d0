"""Frozen CLIP: learns nothing, forgets nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pipeline.methods.base import Adapter, Method, StageContext, register


@register
class ZeroShot(Method):
    """The floor of Average and Last, and the yardstick of Transfer."""

    name = "zero_shot"
    trains = False

    @property
    def first_blocks(self) -> tuple[int, int]:
        """Nothing is adapted: the trunk is all but the last block, whose pooling ends a pass."""
        return self.backbone.image.depth - 1, self.backbone.text.depth - 1

    def adapter(self, context: StageContext) -> Adapter:
        """There is none."""
        raise NotImplementedError("zero_shot trains nothing")

    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to install."""

    @classmethod
    def function(cls, task: str | None, learned: Sequence[str]) -> str | None:
        """Always frozen CLIP."""
        return None

    def image_features(self, x_BLD: Tensor, functions: Sequence[str | None]) -> Tensor:
        """Features of frozen CLIP."""
        return self.frozen_features(x_BLD)

    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: str | None
    ) -> Tensor:
        """Class features of frozen CLIP."""
        return self.backbone.encode_classes(classes, templates)
