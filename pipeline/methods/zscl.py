"""ZSCL: fine-tuning held to frozen CLIP on reference pairs, its weights averaged as it goes.

Rule (zero-shot continual learning, arXiv 2303.06628): over reference images and captions, the
divergence from frozen CLIP of the softmax over captions of each image and of that over images of
each caption; `hold` times the squared distance from the weights before the stage; and the stage
leaves the running mean of its weights, taken `averages` times, the start counted in.

Differences from the paper: its reference images are of ImageNet and its captions of Conceptual
Captions. Neither comes with this package, so that the images of a step are its reference images,
and captions of everyday things, a few at a step, are compared with them: no further image is
seen, at the cost of a weaker hold on what no domain shows. It averages every 100 steps of 1,000.

Shapes: B images, L tokens, D width, R captions of a step, F embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from archipelago.pipeline.methods.adapter import Adapter, StageContext
from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.distilled import DistilledTowers, Distilling, divergence
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.model.backbone import Backbone

THINGS = (
    "person", "child", "face", "hand", "crowd", "dog", "cat", "bird", "horse", "fish", "insect",
    "tree", "flower", "forest", "mountain", "beach", "river", "sky", "snow", "field", "street",
    "house", "bridge", "tower", "room", "kitchen", "window", "door", "chair", "table", "bed",
    "car", "bus", "train", "bicycle", "boat", "plane", "road sign", "clock", "phone", "computer",
    "book", "letter", "number", "map", "painting", "drawing", "sculpture", "cup", "plate", "bread",
    "fruit", "vegetable", "meal", "shirt", "shoe", "hat", "bag", "ball", "toy", "tool", "machine",
    "pattern", "stone",
)  # fmt: skip
CAPTION = "a photo of a {}."


class ZsclOptions(MethodOptions):
    """`weight` and `temperature` of the divergence, `hold` on the last weights, `averages`, and
    `captions` at a step."""

    weight: float = Field(1.0, ge=0.0)
    temperature: float = Field(2.0, gt=0.0)
    hold: float = Field(1.0, ge=0.0)
    averages: int = Field(10, ge=1)
    captions: int = Field(32, ge=2, le=len(THINGS))


class HeldTowers(DistilledTowers):
    """Tuned weights, their running mean, and what frozen CLIP says of the reference captions."""

    passing_count: Tensor

    def __init__(
        self, backbone: Backbone, first_blocks: tuple[int, int], options: ZsclOptions
    ) -> None:
        super().__init__(backbone, first_blocks)
        self.options = options
        self.register_buffer("passing_count", torch.ones(()))
        for number, tensor in enumerate(self.tuned):
            self.register_buffer(f"passing_{number}", tensor.detach().clone())
        self._start: list[Tensor] = []
        self.captions: tuple[Tensor, Tensor, Tensor] | None = None

    def _means(self) -> list[Tensor]:
        return [getattr(self, f"passing_{number}") for number in range(len(self.tuned))]

    def begin_stage(self, context: StageContext) -> None:
        """The mean starts with the weights before the stage."""
        super().begin_stage(context)
        self._start = [tensor.detach().clone() for tensor in self.tuned]
        for mean, start in zip(self._means(), self._start, strict=True):
            mean.copy_(start)
        self.passing_count.fill_(1.0)

    def penalty(self, inputs: Sequence[Tensor], step: int) -> Tensor | None:
        """Both divergences and the squared distance."""
        options, backbone = self.options, self._backbone[0]
        total = self.seen.new_zeros(())
        for tensor, start in zip(self.tuned, self._start, strict=True):
            total = total + options.hold * (tensor - start.to(tensor.device)).square().sum()
        if self.captions is None:
            return total
        chosen = (torch.arange(options.captions) + step * options.captions) % len(THINGS)
        x_RLD, position_R, u_RF = (part[chosen.to(part.device)] for part in self.captions)
        with torch.no_grad():
            tower = backbone.image
            x_BD = tower.pooled(torch.cat(list(inputs)), self.first_image)
            v_BF = torch.nn.functional.normalize(tower.finish(x_BD), dim=-1)
            wanted_BR = backbone.logit_scale * v_BF @ u_RF.T
        said_BR = backbone.logit_scale * self.seen.float() @ self.text(x_RLD, position_R).float().T
        for teacher, student in ((wanted_BR, said_BR), (wanted_BR.T, said_BR.T)):
            total = total + options.weight * divergence(teacher, student, options.temperature)
        return total

    def stepped(self, done: int, steps: int) -> None:
        """Take the weights into the mean, `averages` times a stage."""
        if done % max(1, steps // self.options.averages) == 0:
            self.passing_count += 1.0
            for mean, tensor in zip(self._means(), self.tuned, strict=True):
                mean.lerp_(tensor.detach(), 1.0 / float(self.passing_count))

    def settle(self) -> None:
        """Leave the mean up to the best step."""
        super().settle()
        for mean, tensor in zip(self._means(), self.tuned, strict=True):
            tensor.data.copy_(mean)


@register
class Zscl(Distilling, Finetune):
    """Zero-shot continual learning."""

    name = "zscl"
    Options = ZsclOptions

    def fresh(self, context: StageContext) -> HeldTowers:
        """Frozen CLIP's weights."""
        return HeldTowers(self.backbone, self.first_blocks, self.options)

    @torch.no_grad()
    def begin(self, adapter: Adapter, objectives: Sequence[Any], world: int) -> None:
        """Read the reference captions once."""
        super().begin(adapter, objectives, world)
        assert isinstance(adapter, HeldTowers)
        tower, first = self.backbone.text, self.first_blocks[1]
        tokens = self.backbone.tokenize([CAPTION.format(thing) for thing in THINGS])
        with self.backbone.kernels.exact():
            adapter.captions = (
                tower.trunk(tokens, first),
                tower.positions(tokens),
                self.backbone.encode_text(tokens),
            )
