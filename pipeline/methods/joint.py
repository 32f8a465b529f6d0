"""Joint fine-tuning: all domains at once, for as many steps as one by one; an upper bound.

The papers' "joint" tunes all of CLIP; this one tunes what `finetune` does, so that the two differ
in the order of the images alone. It learns nothing after its one stage: a further domain is a
further stage, which forgets like `finetune`.
"""

from __future__ import annotations

from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.finetune import Finetune


@register
class Joint(Finetune):
    """Fine-tuning on everything at once."""

    name = "joint"
    joint = True
