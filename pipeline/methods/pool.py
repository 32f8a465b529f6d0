"""A pool of experts that all stages share and go on training, and what they note of their inputs.

Shapes: N adapted blocks, E experts, R rank, D width, B batch, L tokens, C classes, F embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.methods.adapter import StageContext, pack, unpack
from archipelago.pipeline.methods.sequential import Continuing
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import Experts, ExpertShape, apply_experts
from archipelago.pipeline.model.towers import Delta

PASSING = "passing_"  # buffers that a checkpoint holds and a finished stage does not


class PoolAdapter(Continuing):
    """Experts `A (N, E R, D)`, `B (N, D, E R)` and a router `W (N, E, D)` for each encoder.

    What a subclass keeps beside them is in buffers named after the encoder, `<what>_<encoder>`.

    Attributes:
        known: tasks that were learned with the pool, in order, the newest last.
    """

    def __init__(
        self,
        backbone: Backbone,
        shapes: Mapping[str, ExpertShape],
        first_blocks: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__(backbone, first_blocks)
        self.shapes = dict(shapes)
        self.known: list[str] = []
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.experts = nn.ModuleDict({k: Experts(s, generator) for k, s in shapes.items()})

    def router(self, encoder: str, task: int) -> Tensor:
        """Which router chooses, (N, E, D)."""
        return self.own(encoder).W

    def own(self, encoder: str) -> Experts:
        """The pool of one encoder."""
        found = self.experts[encoder]
        assert isinstance(found, Experts)
        return found

    def note(self, encoder: str, block: int, h_BLD: Tensor, q_BD: Tensor) -> None:
        """Look at what enters an adapted block in a training pass."""

    def _delta(self, encoder: str, task: int | Tensor) -> Delta | None:
        if encoder not in self.shapes:
            return None
        assert isinstance(task, int), "a pool is trained on one task at a time"
        shape, own, W = self.shapes[encoder], self.own(encoder), self.router(encoder, task)
        if self.watch is not None:
            self.watch.enter(encoder, 0)

        def delta(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor:
            i = block - shape.first
            if self.watch is not None and torch.is_grad_enabled():
                with torch.no_grad():
                    self.note(encoder, i, h_BLD.detach(), q_BD.detach())
            return apply_experts(shape, own.A[i], own.B[i], W[i], h_BLD, q_BD, self.watch)

        return delta

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features through the pool."""
        tower = self._backbone[0].image
        x_BD = tower.pooled(x_BLD, self.first_image, self._delta("image", task))
        return F.normalize(tower.finish(x_BD), dim=-1)

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Caption features; frozen ones where the text encoder is not adapted."""
        tower = self._backbone[0].text
        x_CD = tower.pooled(x_CLD, self.first_text, self._delta("text", task), position_C)
        return F.normalize(tower.finish(x_CD), dim=-1)

    def begin_stage(self, context: StageContext) -> None:
        """One more task is known."""
        super().begin_stage(context)
        self.known = [*self.known, *context.tasks]

    def export(self) -> dict[str, Tensor]:
        """Experts, routers, and what is kept beside them."""
        found = {k: p.detach().cpu().contiguous() for k, p in self.named_parameters()}
        kept = [k for k, _ in self.named_buffers() if not k.startswith(PASSING)]
        found |= {k: getattr(self, k).detach().cpu().contiguous() for k in kept}
        return found | {"known": pack(self.known)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored weights; raises ValueError if they do not fit."""
        parameters = dict(self.named_parameters())
        kept = [k for k, _ in self.named_buffers() if not k.startswith(PASSING)]
        odd = {*parameters, *kept, "known"} ^ set(tensors)
        odd |= {k for k, p in parameters.items() if k in tensors and p.shape != tensors[k].shape}
        if odd:
            raise ValueError(f"stored experts do not fit: '{sorted(odd)[0]}'")
        for key, parameter in parameters.items():
            parameter.data.copy_(tensors[key])
        for key in kept:
            setattr(self, key, tensors[key].clone())
        self.known = unpack(tensors["known"])
