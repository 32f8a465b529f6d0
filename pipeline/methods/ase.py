"""ASE: all tasks in one stage, one group with adaptive shared experts, a router for each task."""

from __future__ import annotations

from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.trge import Trge


class AseOptions(MethodOptions):
    """`baseline`: the method that Delta_m compares with, learned after the run; null = none."""

    baseline: str | None = "lora_per_task"


@register
class Ase(Trge):
    """Adaptive shared experts in a mixture of LoRA experts (arXiv 2510.00570).

    Joint training: no task comes later, so no group borrows and no image is of an unseen task; the
    identifier chooses whose router, embedding and class names an image gets.
    """

    name = "ase"
    Options = AseOptions
    fuses = False
    borrows = False
    joint = True
    dense = True
