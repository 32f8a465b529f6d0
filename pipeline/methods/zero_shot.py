"""Frozen CLIP: learns nothing, forgets nothing."""

from __future__ import annotations

from archipelago.pipeline.methods.base import Method, register


@register
class ZeroShot(Method):
    """The floor of Average and Last, and the yardstick of Transfer."""

    name = "zero_shot"
    policy = "one"
    learns = False
    trains = False
    holds_out = False

    def function(self, task: str | None, learned: object) -> None:
        """Always frozen CLIP."""
        return None
