"""LwF: fine-tuning that keeps what the last weights said of the new images about old classes.

Rule: the loss gets `weight` times the divergence of the student's softmax over the classes of all
earlier stages from that of the weights before the stage, on the stage's own images (learning
without forgetting, arXiv 1606.09282). Differences from the paper, as in its use with CLIP: a class
is a text feature, not an output unit. An old class's is the one it had when its stage ended, which
is all that the stage leaves of it, so that the penalty holds the image encoder. The first stage has
no old classes and is plain fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from archipelago.pipeline.methods.adapter import StageContext
from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.distilled import DistilledTowers, Distilling, divergence
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.methods.tuned import TunedTowers
from archipelago.pipeline.model.backbone import Backbone


class LwfOptions(MethodOptions):
    """`weight` of the divergence, and the `temperature` at which both sides are compared."""

    weight: float = Field(1.0, ge=0.0)
    temperature: float = Field(2.0, gt=0.0)


class RemindedTowers(DistilledTowers):
    """Tuned weights with features of old classes, (R, F), and the weights before the stage."""

    def __init__(
        self, backbone: Backbone, first_blocks: tuple[int, int], options: LwfOptions
    ) -> None:
        super().__init__(backbone, first_blocks)
        self.options = options
        width = int(backbone.image.visual.output_dim)
        self.register_buffer("classes", torch.zeros(0, width))
        self._teacher: tuple[TunedTowers, ...] = ()

    classes: Tensor

    def begin_stage(self, context: StageContext) -> None:
        """The weights as they are teach."""
        super().begin_stage(context)
        if len(self.classes):
            teacher = TunedTowers(self._backbone[0], (self.first_image, self.first_text))
            with torch.no_grad():
                for theirs, own in zip(teacher.tuned, self.tuned, strict=True):
                    theirs.copy_(own)
            self._teacher = (teacher.requires_grad_(False),)

    def penalty(self, inputs: Sequence[Tensor], step: int) -> Tensor | None:
        """Divergence over old classes on the step's images."""
        if not self._teacher:
            return None
        (teacher,) = self._teacher
        scale = self._backbone[0].logit_scale
        with torch.no_grad():
            wanted = scale * teacher.image(torch.cat(list(inputs))) @ self.classes.T
        said = scale * self.seen.float() @ self.classes.T
        return self.options.weight * divergence(wanted, said, self.options.temperature)

    def settle(self) -> None:
        """Note the class features of the stage."""
        super().settle()
        found = [self.classes]
        for text in self.prompts:
            features = [self.text(x, position) for x, position in text]
            found.append(F.normalize(torch.stack(features).mean(dim=0), dim=-1))
        self.classes = torch.cat(found)


@register
class Lwf(Distilling, Finetune):
    """Learning without forgetting."""

    name = "lwf"
    Options = LwfOptions

    def fresh(self, context: StageContext) -> RemindedTowers:
        """Frozen CLIP's weights, no old classes."""
        return RemindedTowers(self.backbone, self.first_blocks, self.options)
