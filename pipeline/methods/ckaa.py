"""CKAA: an adapter for each task, mixed for each image by how sure one is of its task.

Rule: each task trains a low-rank adapter beside the FFNs of the image encoder, alone. Of each
class the mean of frozen CLIP's features is kept; an image's evidence of a task is its largest
cosine with one of the task's means, and the adapters of the `active` likeliest tasks are mixed by
`softmax(E / temperature)` within every block.

Differences from the paper: it also aligns the adapters' features with one another while they
train, and its classes are outputs of a shared layer; here classes are frozen CLIP's text features,
so that the first stage needs nothing of later ones and unseen classes keep their zero-shot answer.
A stage stores all adapters so far: its weights alone answer. An answer costs a pass of frozen CLIP
above the trunk besides.

Shapes: N adapted blocks, R rank, D width, T tasks, P classes of all tasks, B batch, L tokens, F
embedding.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.methods.adapter import Adapter, StageContext
from archipelago.pipeline.methods.base import MethodOptions, register
from archipelago.pipeline.methods.means import class_means
from archipelago.pipeline.methods.sequential import Continuing, Sequential
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import ExpertShape, expert_shapes
from archipelago.pipeline.model.towers import Delta
from archipelago.pipeline.settings import Settings


class CkaaOptions(MethodOptions):
    """`active` adapters for an image, and the `temperature` of the confidence."""

    active: int = Field(3, ge=1)
    temperature: float = Field(0.05, gt=0.0)


class MixedAdapters(Continuing):
    """The new adapter `A (N, R, D)`, `B (N, D, R)`; finished ones and class means as buffers."""

    A_done: Tensor
    B_done: Tensor
    means: Tensor
    owners: Tensor
    passing_means: Tensor

    def __init__(
        self,
        backbone: Backbone,
        shape: ExpertShape,
        first_blocks: tuple[int, int],
        seed: int,
        options: CkaaOptions,
    ) -> None:
        super().__init__(backbone, first_blocks)
        self.shape, self.options = shape, options
        self._training = False
        n, r, d = shape.blocks, shape.count * shape.rank, shape.width
        drawn = torch.rand(n, r, d, generator=torch.Generator().manual_seed(seed))
        self.A = nn.Parameter((drawn * 2 - 1) / math.sqrt(d))
        self.B = nn.Parameter(torch.zeros(n, d, r))
        width = int(backbone.image.visual.output_dim)
        self.register_buffer("A_done", torch.zeros(0, n, r, d))
        self.register_buffer("B_done", torch.zeros(0, n, d, r))
        self.register_buffer("means", torch.zeros(0, width))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("passing_means", torch.zeros(0, width))

    def begin_stage(self, context: StageContext) -> None:
        """Room for the means of the new classes."""
        super().begin_stage(context)
        self._training = True
        self.passing_means = self.means.new_zeros(context.sizes[0], self.means.shape[1])

    def confidence(self, v_BF: Tensor) -> Tensor:
        """Shares of the tasks' adapters (B, T) from frozen features."""
        cosine_BP = v_BF @ self.means.T
        E_BT = torch.stack(
            [cosine_BP[:, self.owners == t].amax(dim=1) for t in range(len(self.A_done))], dim=1
        )
        best = E_BT.topk(min(self.options.active, E_BT.shape[1]), dim=1).indices
        out = torch.ones_like(E_BT, dtype=torch.bool).scatter(1, best, False)
        return (E_BT / self.options.temperature).masked_fill(out, -torch.inf).softmax(dim=1)

    def _delta(self, shares_BT: Tensor | None) -> Delta:
        shape = self.shape

        def alone(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor:
            i = block - shape.first
            return shape.scale * (h_BLD @ self.A[i].T) @ self.B[i].T

        def mixed(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor:
            assert shares_BT is not None
            i, rank = block - shape.first, self.A.shape[1]
            z = h_BLD @ self.A_done[:, i].flatten(0, 1).T
            z = z * shares_BT.repeat_interleave(rank, dim=1)[:, None].to(z.dtype)
            return shape.scale * z @ self.B_done[:, i].transpose(1, 2).flatten(0, 1)

        return alone if shares_BT is None else mixed

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features: the new adapter's while it trains, else the mixture's."""
        tower, shares = self._backbone[0].image, None
        if not self._training:
            frozen = tower.finish(tower.pooled(x_BLD, self.first_image))
            shares = self.confidence(F.normalize(frozen, dim=-1))
        x_BD = tower.pooled(x_BLD, self.first_image, self._delta(shares))
        return F.normalize(tower.finish(x_BD), dim=-1)

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Frozen CLIP's caption features."""
        tower = self._backbone[0].text
        x_CD = tower.pooled(x_CLD, self.first_text, None, position_C)
        return F.normalize(tower.finish(x_CD), dim=-1)

    def export(self) -> dict[str, Tensor]:
        """All adapters and means, the new ones last."""
        done = {k: getattr(self, k) for k in ("A_done", "B_done", "means", "owners")}
        if self._training:
            number = torch.full((len(self.passing_means),), len(self.A_done))
            new = {
                "A_done": self.A.detach()[None],
                "B_done": self.B.detach()[None],
                "means": self.passing_means,
                "owners": number.to(self.owners.device),
            }
            done = {key: torch.cat([tensor, new[key]]) for key, tensor in done.items()}
        return {key: tensor.cpu().contiguous() for key, tensor in done.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over finished adapters; raises ValueError if they do not fit."""
        names = ("A_done", "B_done", "means", "owners")
        fits = set(tensors) == set(names) and all(
            tensors[name].shape[1:] == getattr(self, name).shape[1:] for name in names
        )
        if not fits:
            raise ValueError("stored adapters do not fit")
        for name in names:
            setattr(self, name, tensors[name].clone())


@register
class Ckaa(Sequential):
    """Confidence-weighted mixture of task adapters."""

    name = "ckaa"
    Options = CkaaOptions
    mixes = True
    several = False

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        experts = settings.experts.model_copy(update={"image": "on", "text": "off"})
        super().__init__(settings.model_copy(update={"experts": experts}), basis, backbone, scale)

    def fresh(self, context: StageContext) -> MixedAdapters:
        """No finished adapters; the new one does nothing yet."""
        seed = zlib.crc32(f"{self.settings.seed}:{context.task}".encode())
        shape = expert_shapes(self.backbone, self.settings.experts)["image"]
        return MixedAdapters(self.backbone, shape, self.first_blocks, seed, self.options)

    def begin(self, adapter: Adapter, objectives: Sequence[Any], world: int) -> None:
        """Means of the new classes."""
        assert isinstance(adapter, MixedAdapters)
        (task,) = objectives
        adapter.passing_means.copy_(class_means(self, task, adapter.passing_means, world))
