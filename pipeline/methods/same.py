"""SAME: one pool and one router for all tasks, whose gradients spare what earlier inputs used.

Rule: of everything that entered a block in earlier stages the second moment C is kept, divided by
its mean eigenvalue. The router's gradient is split: its part in the directions that hold `energy`
of C is scaled by the inverse of their eigenvalues, at most 1, the rest is left as it is. The
gradient of the experts' A is multiplied by `d (C + d I)^-1`: directions in which earlier inputs
were strong hardly change, new ones do as ever.

Differences from the paper: it tunes a multimodal language model and splits by singular values of
what it calls the known subspace; here the experts stand where groups do in CLIP, with their shape,
and Adam's scaling follows the correction, which softens it. With several workers C is that of the
first one's images.

Shapes: N adapted blocks, E experts, R rank, D width, B batch, L tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from archipelago.pipeline.methods.adapter import StageContext
from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.pool import PASSING, PoolAdapter
from archipelago.pipeline.methods.sequential import Sequential
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import ExpertShape, expert_shapes

KINDS = ("router", "input")  # what is read by the router, and by the experts


class SameOptions(MethodOptions):
    """`energy` of the known subspace, and `damping` d."""

    energy: float = Field(0.9, gt=0.0, lt=1.0)
    damping: float = Field(0.1, gt=0.0)


class SparingPool(PoolAdapter):
    """Buffers: second moments `(N, D, D)` of earlier stages, and of this one, for each reader."""

    def __init__(
        self,
        backbone: Backbone,
        shapes: Mapping[str, ExpertShape],
        first_blocks: tuple[int, int],
        seed: int,
        options: SameOptions,
    ) -> None:
        super().__init__(backbone, shapes, first_blocks, seed)
        self.options = options
        self._maps: dict[tuple[str, str], Tensor] = {}
        for name, shape in shapes.items():
            for kind in KINDS:
                zero = torch.zeros(shape.blocks, shape.width, shape.width)
                self.register_buffer(f"{kind}_{name}", zero)
                self.register_buffer(f"{PASSING}{kind}_{name}", zero.clone())

    def note(self, encoder: str, block: int, h_BLD: Tensor, q_BD: Tensor) -> None:
        """Add to the second moments of the stage."""
        for kind, x in (("router", q_BD), ("input", h_BLD.flatten(0, 1))):
            moment = getattr(self, f"{PASSING}{kind}_{encoder}")
            moment[block] += x.float().T @ x.float() / len(x)

    def begin_stage(self, context: StageContext) -> None:
        """Work out from earlier inputs how gradients are to be corrected."""
        super().begin_stage(context)
        self._maps = {}
        for name in self.shapes:
            for kind in KINDS:
                getattr(self, f"{PASSING}{kind}_{name}").zero_()
                past = getattr(self, f"{kind}_{name}")
                if past.any():
                    self._maps[kind, name] = torch.stack([self._map(kind, C) for C in past])

    def _map(self, kind: str, moment: Tensor) -> Tensor:
        """(D, D) by which a gradient's rows are multiplied."""
        C = moment.double() / moment.double().diagonal().mean()
        one = torch.eye(len(C), dtype=C.dtype, device=C.device)
        if kind == "input":
            d = self.options.damping
            return (d * torch.linalg.inv(C + d * one)).float()
        values, vectors = torch.linalg.eigh(C)
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        share = values.cumsum(0) / values.sum()
        count = int((share < self.options.energy).sum()) + 1
        known, scale = vectors[:, :count], 1.0 - (1.0 / values[:count]).clamp(max=1.0)
        return (one - (known * scale) @ known.T).float()

    def correct(self) -> None:
        """Spare what earlier inputs used."""
        for name in self.shapes:
            own = self.own(name)
            for kind, tensor in (("router", own.W), ("input", own.A)):
                if tensor.grad is not None and (kind, name) in self._maps:
                    tensor.grad = tensor.grad @ self._maps[kind, name].to(tensor.device)

    def settle(self) -> None:
        """The stage's inputs join the earlier ones, each stage with the same weight."""
        for name in self.shapes:
            for kind in KINDS:
                seen = getattr(self, f"{PASSING}{kind}_{name}")
                level = seen.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
                getattr(self, f"{kind}_{name}").add_(seen / level[:, None, None])


@register
class Same(Sequential):
    """Shared experts with sparing gradients."""

    name = "same"
    Options = SameOptions
    several = False

    def fresh(self, context: StageContext) -> SparingPool:
        """Experts that do nothing yet, no earlier inputs."""
        seed = zlib.crc32(f"{self.settings.seed}:{context.task}".encode())
        shapes = expert_shapes(self.backbone, self.settings.experts)
        return SparingPool(self.backbone, shapes, self.first_blocks, seed, self.options)
