"""MoE-Adapters: a pool of adapters over all tasks, a noisy top-2 router for each, used ones freeze.

Rule (arXiv 2403.11549): in each block of both encoders, beside the FFN, `experts` bottlenecks of
width `rank`; the task's router reads the CLS (end-of-text) token and the `active` likeliest work;
its logits get noise while it trains. When a stage ends, the `freeze` experts of each block that
were chosen most often are frozen for good, and later stages train the others.

Differences from the paper: the identifier says, of each image by itself, whose router chooses.
`selector: batch` is the paper's way, for comparison alone: an autoencoder for each task, and the
one that restores `BATCH` images in a row best chooses for all of them. It is right only where a
batch is of one domain, as in an evaluation domain by domain, and an answer then depends on the
other images. The autoencoders are linear and follow from the tasks' sums. Else: the noise has a
fixed size, not a learned one; blocks begin with the groups' first one (`experts.first_block`). An
expert that is not frozen yet goes on changing, so that older tasks that use it forget.

Shapes: N adapted blocks, E experts, R rank, D width, T tasks, B batch, L tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.methods.adapter import StageContext
from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.pool import PASSING, PoolAdapter
from archipelago.pipeline.methods.sequential import Sequential
from archipelago.pipeline.methods.view import Function
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import ROUTER_STD, ExpertShape, expert_shapes
from archipelago.pipeline.settings import Settings

BATCH = 64  # images that vote
CODE = 32  # width of an autoencoder


class MoeOptions(MethodOptions):
    """Shape of the pool: `experts` a block of width `rank`, `active` at work, `freeze` a task;
    `noise` on routers; `selector`: who says whose router chooses."""

    experts: int = Field(22, ge=1)
    rank: int = Field(64, ge=1)
    active: int = Field(2, ge=1)
    freeze: int = Field(2, ge=0)
    noise: float = Field(0.5, ge=0.0)
    selector: Literal["identifier", "batch"] = "identifier"


class RoutedPool(PoolAdapter):
    """Buffers: `routers (T, N, E, D)` of finished tasks, `frozen (N, E)`, and counts of a stage."""

    def __init__(
        self,
        backbone: Backbone,
        shapes: Mapping[str, ExpertShape],
        first_blocks: tuple[int, int],
        seed: int,
        freeze: int,
    ) -> None:
        super().__init__(backbone, shapes, first_blocks, seed)
        self.freeze = freeze
        self._training = False
        for name, shape in shapes.items():
            size = (shape.blocks, shape.count)
            self.register_buffer(f"routers_{name}", torch.zeros(0, *size, shape.width))
            self.register_buffer(f"frozen_{name}", torch.zeros(size))
            self.register_buffer(f"{PASSING}count_{name}", torch.zeros(size))

    def number(self, task: str) -> int:
        """Its place among the routers."""
        return self.known.index(task)

    def router(self, encoder: str, task: int) -> Tensor:
        """The new one while a stage trains, else that of a task."""
        if self._training:
            return self.own(encoder).W
        return getattr(self, f"routers_{encoder}")[task]

    def note(self, encoder: str, block: int, h_BLD: Tensor, q_BD: Tensor) -> None:
        """Count which experts are chosen."""
        logits = q_BD @ self.own(encoder).W[block].T
        chosen = logits.topk(min(self.shapes[encoder].gating.active, logits.shape[-1])).indices
        count = getattr(self, f"{PASSING}count_{encoder}")
        one = torch.ones_like(chosen.flatten(), dtype=count.dtype)
        count[block].index_add_(0, chosen.flatten(), one)

    def begin_stage(self, context: StageContext) -> None:
        """A new router, and the counts from zero."""
        super().begin_stage(context)
        self._training = True
        generator = torch.Generator().manual_seed(self.seed)
        for name in self.shapes:
            W = self.own(name).W
            W.data.copy_(torch.randn(W.shape, generator=generator) * ROUTER_STD)
            getattr(self, f"{PASSING}count_{name}").zero_()

    def correct(self) -> None:
        """Frozen experts get no gradient."""
        for name, shape in self.shapes.items():
            live = 1.0 - getattr(self, f"frozen_{name}").repeat_interleave(shape.rank, dim=1)
            own = self.own(name)
            if own.A.grad is not None and own.B.grad is not None:
                own.A.grad *= live[:, :, None]
                own.B.grad *= live[:, None, :]

    def settle(self) -> None:
        """Freeze the experts that were chosen most often."""
        for name in self.shapes:
            count = getattr(self, f"{PASSING}count_{name}")
            most = count.topk(min(self.freeze, count.shape[1]), dim=1).indices
            getattr(self, f"frozen_{name}").scatter_(1, most, 1.0)

    def export(self) -> dict[str, Tensor]:
        """With the new router among those of finished tasks."""
        found = super().export()
        for name in self.shapes if self._training else ():
            key = f"routers_{name}"
            new = found.pop(f"experts.{name}.W")
            found[key] = torch.cat([found[key], new[None]])
        return {k: t for k, t in found.items() if not k.endswith(".W")}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a finished stage; the next one draws a router of its own."""
        own = {f"experts.{name}.W": self.own(name).W.detach() for name in self.shapes}
        super().load({**tensors, **own})


@register
class MoeAdapters(Sequential):
    """Mixture of adapters with a router for each task."""

    name = "moe_adapters"
    Options = MoeOptions
    policy = "hard"
    several = False

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(settings, basis, backbone, scale)
        o = self.options
        experts = settings.experts.model_copy(
            update={
                "preset": None,
                "count": o.experts,
                "rank": o.rank,
                "active": o.active,
                "shared": "none",
                "shared_count": 0,
                "kind": "bottleneck",
                "router": "sample",
                "noise": o.noise,
                "normalise": "post",
            }
        )
        self.settings = settings.model_copy(update={"experts": experts})

    def fresh(self, context: StageContext) -> RoutedPool:
        """Experts that do nothing yet."""
        seed = zlib.crc32(f"{self.settings.seed}:{context.task}".encode())
        shapes = expert_shapes(self.backbone, self.settings.experts)
        return RoutedPool(self.backbone, shapes, self.first_blocks, seed, self.options.freeze)

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The pool as the newest stage left it, by the router of the task."""
        return Function(task, learned[-1]) if task is not None and task in learned else None

    def choose(
        self, options: Sequence[str], log_shares_BT: np.ndarray, compact_BK: np.ndarray
    ) -> np.ndarray:
        """The identifier's word, or a batch's vote, see the module's text."""
        if self.options.selector == "identifier" or not options:
            return log_shares_BT
        errors = np.stack([self._restoring(name, compact_BK) for name in options], axis=1)
        shares = np.full(log_shares_BT.shape, -np.inf)
        for start in range(0, len(errors), BATCH):
            rows = slice(start, start + BATCH)
            shares[rows, errors[rows].mean(axis=0).argmin()] = 0.0
        return shares

    def _restoring(self, task: str, compact_BK: np.ndarray) -> np.ndarray:
        """(B,) squared error of a task's linear autoencoder: what its main directions leave."""
        record = self.records[task]
        assert record.sums is not None
        key = (self.name, CODE)
        if key not in record.derived:
            width = min(CODE, record.sums.width - 1)
            _, vectors = np.linalg.eigh(record.sums.within + record.sums.between)
            record.derived[key] = vectors[:, -width:]
        centred = compact_BK.astype(np.float64) - record.sums.mean
        code = centred @ record.derived[key]
        return np.square(centred).sum(axis=1) - np.square(code).sum(axis=1)
