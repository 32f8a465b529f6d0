"""Independent full fine-tuning: each domain its own copy of all of CLIP, the domain given.

What the papers call full fine-tuning: every weight of both encoders, the embeddings of patches,
tokens and positions too; only the temperature stays. An upper bound of what one domain's images
give, at a whole model a domain; frozen CLIP answers for domains that were not learned.
"""

from __future__ import annotations

from collections.abc import Sequence

from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.methods.view import Function


@register
class FinetunePerTask(Finetune):
    """A fine-tuned model for each domain."""

    name = "finetune_per_task"
    policy = "given"
    continues = False
    alone = True

    @property
    def first_blocks(self) -> tuple[int, int]:
        """Everything, from before the embeddings on."""
        return -1, -1

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The domain's own model; frozen CLIP before it was learned."""
        return Function(task, task) if task is not None and task in learned else None
