"""One adapter per task, identity given, no help between tasks: no interference."""

from __future__ import annotations

from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.trge import Trge


@register
class LoraPerTask(Trge):
    """Expert groups with the task's identity given at test time; frozen CLIP for unseen tasks."""

    name = "lora_per_task"
    policy = "given"
    fuses = False
    borrows = False
    alone = True
    dense = True
