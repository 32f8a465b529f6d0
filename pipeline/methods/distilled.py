"""Fine-tuning that is held to what a teacher says of the same images.

Shapes: B batch, L tokens, D width, R captions or classes to be compared with, F embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.methods.adapter import Adapter
from archipelago.pipeline.methods.base import Method
from archipelago.pipeline.methods.tuned import TunedTowers


class DistilledTowers(TunedTowers):
    """Tuned weights that remember the features of the running step.

    Attributes:
        seen: image features (B, F) of the newest pass, with their graph.
        prompts: per task of the stage and template, activations and positions of its class names.
    """

    seen: Tensor
    prompts: Sequence[Sequence[tuple[Tensor, Tensor]]] = ()

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features, noted for the penalty of the step."""
        self.seen = super().image(x_BLD, task)
        return self.seen

    def settle(self) -> None:
        """Let go of the last step."""
        self.__dict__.pop("seen", None)


class Distilling(Method):
    """Gives an adapter the stage's prompts before its first step."""

    def begin(self, adapter: Adapter, objectives: Sequence[Any], world: int) -> None:
        """Prompts of the stage's tasks."""
        assert isinstance(adapter, DistilledTowers)
        adapter.prompts = [task.text for task in objectives]


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(teacher / T) | softmax(student / T))`, mean over rows (Hinton)."""
    with torch.autocast(student.device.type, enabled=False):
        said = F.log_softmax(student.float() / temperature, dim=-1)
        wanted = F.log_softmax(teacher.float() / temperature, dim=-1)
        both = F.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return temperature**2 * both
