"""WiSE-FT: after each stage the tuned weights are drawn back towards frozen CLIP's.

Rule: `theta = (1 - a) theta_0 + a theta_tuned` (robust fine-tuning of zero-shot models, arXiv
2109.01903), where `theta_0` are frozen CLIP's weights, or with `anchor: last` those that the stage
started from. Differences from the paper: it knows one task, here the interpolated weights are what
the next stage starts from; what is tuned is what `finetune` tunes; `a` is fixed, not chosen on
other data.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from archipelago.pipeline.methods.adapter import StageContext
from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.methods.tuned import TunedTowers
from archipelago.pipeline.model.backbone import Backbone


class WiseOptions(MethodOptions):
    """`share`: a; `anchor`: what the tuned weights are drawn to."""

    share: float = Field(0.5, ge=0.0, le=1.0)
    anchor: Literal["clip", "last"] = "clip"


class DrawnTowers(TunedTowers):
    """Tuned weights that end between where they came from and where they went."""

    def __init__(
        self, backbone: Backbone, first_blocks: tuple[int, int], options: WiseOptions
    ) -> None:
        super().__init__(backbone, first_blocks)
        self.options = options
        self._start = self.origin

    def begin_stage(self, context: StageContext) -> None:
        """Note where the stage starts."""
        super().begin_stage(context)
        if self.options.anchor == "last":
            self._start = [tensor.detach().clone() for tensor in self.tuned]

    def settle(self) -> None:
        """Interpolate."""
        for tuned, start in zip(self.tuned, self._start, strict=True):
            tuned.data.lerp_(start.to(tuned.device), 1.0 - self.options.share)


@register
class WiseFt(Finetune):
    """Fine-tuning with weights averaged with those before."""

    name = "wise_ft"
    Options = WiseOptions

    def fresh(self, context: StageContext) -> DrawnTowers:
        """Frozen CLIP's weights."""
        return DrawnTowers(self.backbone, self.first_blocks, self.options)
