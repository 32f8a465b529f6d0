"""One expert group: everything a stage learns, and nothing else.

Shapes: N adapted blocks, E experts, R rank, D width, B batch, L tokens, T tasks of the stage.

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

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.router import Gating
from archipelago.pipeline.model.towers import Tower
from archipelago.pipeline.model.watch import Watch
from archipelago.pipeline.settings import ExpertSettings

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
    """Shapes for the encoders that carry experts: `image` and `text`, unless one is off."""
    towers: dict[str, Tower] = {}
    if settings.image == "on":
        towers["image"] = backbone.image
    if settings.text == "on":
        towers["text"] = backbone.text
    gating = Gating(settings.active, settings.shared_count, settings.shared, settings.normalise)
    shapes = {}
    for name, tower in towers.items():
        first = tower.depth // 2 if settings.first_block == "half" else settings.first_block
        if int(first) >= tower.depth:
            raise UserError(
                f"experts.first_block={first}: the {name} encoder has {tower.depth} blocks, counted"
                f" from 0; give at most {tower.depth - 1}"
            )
        shapes[name] = ExpertShape(
            first,
            tower.depth - first,
            tower.width,
            settings.count,
            settings.rank,
            settings.scale,
            settings.kind,
            settings.router,
            gating,
        )
    return shapes


def trunk_blocks(backbone: Backbone, settings: ExpertSettings) -> tuple[int, int]:
    """First adapted block of the image and of the text encoder (the last one where it is off)."""
    shapes = expert_shapes(backbone, settings)
    towers: tuple[tuple[str, Tower], ...] = (("image", backbone.image), ("text", backbone.text))
    image, text = (shapes[n].first if n in shapes else tower.depth - 1 for n, tower in towers)
    return image, text


class Experts(nn.Module):
    """The experts and routers of one encoder, stacked over its adapted blocks.

    Parameters: `A (N, E*R, D)`, `B (N, D, E*R)` (zero at start), `W (N, E, D)` (shared last). Where
    a stage has several tasks they share A and B; each has a router in every block and an embedding:
    `W (T, N, E, D)`, `e (T, D)` (zero at start, `x_t = x + e_t` at the first adapted block).
    """

    def __init__(
        self, shape: ExpertShape, generator: torch.Generator | None = None, tasks: int = 1
    ) -> None:
        super().__init__()
        self.shape = shape
        self.tasks = tasks
        n, er, d = shape.blocks, shape.count * shape.rank, shape.width
        bound = 1.0 / math.sqrt(d)
        each = () if tasks == 1 else (tasks,)
        self.A = nn.Parameter((torch.rand(n, er, d, generator=generator) * 2 - 1) * bound)
        self.B = nn.Parameter(torch.zeros(n, d, er))
        routers = torch.randn(*each, n, shape.count, d, generator=generator)
        self.W = nn.Parameter(routers * ROUTER_STD)
        self.e = nn.Parameter(torch.zeros(tasks, d)) if tasks > 1 else None

    def __call__(
        self,
        block: int,
        h_BLD: Tensor,
        q_BD: Tensor,
        task: int | Tensor = 0,
        watch: Watch | None = None,
    ) -> Tensor | None:
        """What this group adds to `block`, (B, L, D); None below the first adapted block.

        Args:
            block: number of the block in its encoder.
            h_BLD: LN2's output.
            q_BD: the token that a router reads.
            task: whose routers choose: one index, or one per sample (B,).
            watch: looks on in a training pass.
        """
        i = block - self.shape.first
        if i < 0:
            return None
        W = self.router(block, task)
        return apply_experts(self.shape, self.A[i], self.B[i], W, h_BLD, q_BD, watch)

    def router(self, block: int, task: int | Tensor = 0) -> Tensor:
        """Router of one block for one task (E, D), or for one task per sample (B, E, D)."""
        i = block - self.shape.first
        return self.W[i] if self.tasks == 1 else self.W[:, i][task]

    def enter(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """`x_t = x + e_t` for the input of the first adapted block."""
        if self.e is None:
            return x_BLD
        return x_BLD + (self.e[task] if isinstance(task, int) else self.e[task][:, None])

    def gates(self, block: int, h_BLD: Tensor, q_BD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Gates of one block, (B, 1, E) for sample-level, (B, L, E) for token-level routing."""
        return _gates(self.shape, self.router(block, task), h_BLD, q_BD)


def _gates(
    shape: ExpertShape, W: Tensor, h_BLD: Tensor, q_BD: Tensor, watch: Watch | None = None
) -> Tensor:
    read = h_BLD if shape.level == "token" else q_BD.unsqueeze(1)
    logits = (read @ W.transpose(-1, -2)).float()
    if watch is None:
        return shape.gating(logits)
    gates = shape.gating(logits, watch.noise(logits[..., : shape.count - shape.gating.shared]))
    watch.note(logits, gates)
    return gates


def apply_experts(
    shape: ExpertShape,
    A: Tensor,
    B: Tensor,
    W: Tensor,
    h_BLD: Tensor,
    q_BD: Tensor,
    watch: Watch | None = None,
) -> Tensor:
    """One block of one group; A, B or W may carry a leading batch axis: one of them per sample."""
    gates = _gates(shape, W, h_BLD, q_BD, watch)
    z = h_BLD @ A.transpose(-1, -2)
    if shape.kind == "bottleneck":
        z = F.relu(z)
    z = z * gates.repeat_interleave(shape.rank, dim=-1).to(z.dtype)
    return (z @ B.transpose(-1, -2)) * shape.scale


class ExpertGroup(nn.Module):
    """Experts of the adapted encoders for one stage of one or several tasks."""

    def __init__(
        self, shapes: dict[str, ExpertShape], seed: int | None = None, tasks: int = 1
    ) -> None:
        super().__init__()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.tasks = tasks
        self.image = Experts(shapes["image"], generator, tasks) if "image" in shapes else None
        self.text = Experts(shapes["text"], generator, tasks) if "text" in shapes else None

    def encoders(self) -> Iterable[tuple[str, Experts]]:
        """The encoders that carry experts, by name."""
        if self.image is not None:
            yield "image", self.image
        if self.text is not None:
            yield "text", self.text

    def parameter_count(self) -> int:
        """Stored parameters: experts and routers."""
        return sum(p.numel() for p in self.parameters())
