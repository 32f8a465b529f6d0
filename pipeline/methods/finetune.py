"""Continual fine-tuning: the same blocks, all their weights, one task after another.

The reference for forgetting: each stage starts from the last one's weights and the newest weights
answer for every task. It trains from the same first block, for the same steps, as the groups do.
"""

from __future__ import annotations

from archipelago.pipeline.methods.adapter import StageContext
from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.sequential import Sequential
from archipelago.pipeline.methods.tuned import TunedTowers


@register
class Finetune(Sequential):
    """Sequential fine-tuning of everything above the trunk."""

    name = "finetune"

    def fresh(self, context: StageContext) -> TunedTowers:
        """Frozen CLIP's weights."""
        return TunedTowers(self.backbone, self.first_blocks)
