"""One LoRA for all tasks, trained on one after another: the cheap way to forget.

Rule: `y = s B A h` beside the frozen FFN of each adapted block (LoRA, arXiv 2106.09685), of the
rank that all experts of a group have together, `B = 0` before the first stage; each stage goes on
with the last one's A and B. Differences from the paper: it adapts the projections of attention;
this one sits where the expert groups do, so that the two differ in what is shared alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.methods.adapter import StageContext, pack
from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.sequential import Continuing, Sequential
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import ExpertShape, expert_shapes
from archipelago.pipeline.model.towers import Delta


class LoraAdapter(Continuing):
    """`A (N, R, D)` and `B (N, D, R)` of each adapted encoder."""

    def __init__(
        self,
        backbone: Backbone,
        shapes: Mapping[str, ExpertShape],
        first_blocks: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__(backbone, first_blocks)
        self.shapes = dict(shapes)
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            rank, bound = shape.count * shape.rank, 1.0 / math.sqrt(shape.width)
            drawn = torch.rand(shape.blocks, rank, shape.width, generator=generator)
            self.A[name] = nn.Parameter((drawn * 2 - 1) * bound)
            self.B[name] = nn.Parameter(torch.zeros(shape.blocks, shape.width, rank))

    def _delta(self, encoder: str) -> Delta | None:
        if encoder not in self.shapes:
            return None
        shape, A, B = self.shapes[encoder], self.A[encoder], self.B[encoder]

        def delta(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor:
            i = block - shape.first
            return shape.scale * (h_BLD @ A[i].T) @ B[i].T

        return delta

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features, the same for every task."""
        tower = self._backbone[0].image
        x_BD = tower.pooled(x_BLD, self.first_image, self._delta("image"))
        return F.normalize(tower.finish(x_BD), dim=-1)

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Caption features; frozen ones where the text encoder is not adapted."""
        tower = self._backbone[0].text
        x_CD = tower.pooled(x_CLD, self.first_text, self._delta("text"), position_C)
        return F.normalize(tower.finish(x_CD), dim=-1)

    def export(self) -> dict[str, Tensor]:
        """A and B by encoder."""
        tensors = {k: p.detach().cpu().contiguous() for k, p in self.named_parameters()}
        return tensors | ({"tasks": pack(self.tasks)} if len(self.tasks) > 1 else {})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored weights; raises ValueError if they do not fit."""
        try:
            own = {k: v for k, v in tensors.items() if k != "tasks"}
            self.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise ValueError(f"weights do not fit: {str(error).splitlines()[-1]}") from error


@register
class Lora(Sequential):
    """One shared low-rank adapter."""

    name = "lora"

    def fresh(self, context: StageContext) -> LoraAdapter:
        """B is zero, A is drawn."""
        seed = zlib.crc32(f"{self.settings.seed}:{context.task}".encode())
        shapes = expert_shapes(self.backbone, self.settings.experts)
        return LoraAdapter(self.backbone, shapes, self.first_blocks, seed)
