"""One expert group: everything a stage learns, and nothing else.

Shapes: N adapted blocks, E experts, R rank, D width, B batch, L tokens.

The experts of a group share their input, so a block's group is two GEMMs with the gate between:
`y = s * B_cat (g (x) phi(A_cat h))` - no loop over experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.backbone import Backbone
from pipeline.model.router import Gating
from pipeline.model.towers import Tower
from pipeline.settings import ExpertSettings

ROUTER_STD = 0.02  # zero would tie the experts, and unselected ones would get no gradient


@dataclass(frozen=True)
class ExpertShape:
    """Static shape of the experts in one encoder: `first` is the first adapted block."""

    first: int
    blocks: int
    width: int
    count: int
    rank: int
    scale: float
    kind: str
    level: str
    gating: Gating


def expert_shapes(backbone: Backbone, settings: ExpertSettings) -> dict[str, ExpertShape]:
    """Shapes for the encoders that carry experts: `image`, and `text` unless it is off."""
    towers: dict[str, Tower] = {"image": backbone.image}
    if settings.text == "on":
        towers["text"] = backbone.text
    gating = Gating(settings.active, settings.shared_count, settings.shared, settings.normalise)
    shapes = {}
    for name, tower in towers.items():
        first = tower.depth // 2 if settings.first_block == "half" else settings.first_block
        first = min(int(first), tower.depth - 1)
        shapes[name] = ExpertShape(
            first, tower.depth - first, tower.width, settings.count, settings.rank,
            settings.scale, settings.kind, settings.router, gating,
        )  # fmt: skip
    return shapes


def trunk_blocks(backbone: Backbone, settings: ExpertSettings) -> tuple[int, int]:
    """First adapted block of the image and of the text encoder (the last one if text is off)."""
    shapes = expert_shapes(backbone, settings)
    text = shapes["text"].first if "text" in shapes else backbone.text.depth - 1
    return shapes["image"].first, text


class Experts(nn.Module):
    """The experts and routers of one encoder, stacked over its adapted blocks.

    Parameters: `A (N, E*R, D)`, `B (N, D, E*R)` (zero at start), `W (N, E, D)` (shared last).
    """

    def __init__(self, shape: ExpertShape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        n, er, d = shape.blocks, shape.count * shape.rank, shape.width
        bound = 1.0 / math.sqrt(d)
        self.A = nn.Parameter((torch.rand(n, er, d, generator=generator) * 2 - 1) * bound)
        self.B = nn.Parameter(torch.zeros(n, d, er))
        self.W = nn.Parameter(torch.randn(n, shape.count, d, generator=generator) * ROUTER_STD)

    def __call__(self, block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor | None:
        """What this group adds to `block`, (B, L, D); None below the first adapted block."""
        i = block - self.shape.first
        if i < 0:
            return None
        return apply_experts(self.shape, self.A[i], self.B[i], self.W[i], h_BLD, q_BD)

    def gates(self, block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor:
        """Gates of one block, (B, 1, E) for sample-level, (B, L, E) for token-level routing."""
        return _gates(self.shape, self.W[block - self.shape.first], h_BLD, q_BD)


def _gates(shape: ExpertShape, W: Tensor, h_BLD: Tensor, q_BD: Tensor) -> Tensor:
    read = h_BLD if shape.level == "token" else q_BD.unsqueeze(1)
    return shape.gating((read @ W.transpose(-1, -2)).float())


def apply_experts(
    shape: ExpertShape, A: Tensor, B: Tensor, W: Tensor, h_BLD: Tensor, q_BD: Tensor
) -> Tensor:
    """One block of one group, or of one per sample when A, B, W carry a leading batch axis."""
    gates = _gates(shape, W, h_BLD, q_BD)
    z = h_BLD @ A.transpose(-1, -2)
    if shape.kind == "bottleneck":
        z = F.relu(z)
    z = z * gates.repeat_interleave(shape.rank, dim=-1).to(z.dtype)
    return (z @ B.transpose(-1, -2)) * shape.scale


class ExpertGroup(nn.Module):
    """Experts of both encoders for one stage."""

    def __init__(self, shapes: dict[str, ExpertShape], seed: int | None = None) -> None:
        super().__init__()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.image = Experts(shapes["image"], generator)
        self.text = Experts(shapes["text"], generator) if "text" in shapes else None

    def encoders(self) -> Iterable[tuple[str, Experts]]:
        """The encoders that carry experts, by name."""
        yield "image", self.image
        if self.text is not None:
            yield "text", self.text

    def parameter_count(self) -> int:
        """Stored parameters: experts and routers."""
        return sum(p.numel() for p in self.parameters())
