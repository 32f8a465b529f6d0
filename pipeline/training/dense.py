"""Dense tasks of a stage: a head on token maps, a loss and a target for every pixel.

The tasks of one split share its images, its views and its held-out fold, so their activations are
computed once; a task trains on the rows that have a target of its own.

Shapes: B batch of a task, n rows of this rank, m held-out rows, L tokens, D width, S side in
pixels, O output channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from archipelago.pipeline.dense import DenseTask, build
from archipelago.pipeline.dense.views import view_targets
from archipelago.pipeline.methods import Adapter, Method
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams import DenseTable, PreparedDomain, stratified_fold
from archipelago.pipeline.training.objectives import Judgement, Objective
from archipelago.pipeline.training.trunk import TrunkCache, gather
from archipelago.pipeline.training.views import Views

EVALUATION_BATCH = 64


@dataclass
class Shared:
    """What the tasks of one split have in common on one rank.

    Attributes:
        table: images and targets.
        rows: rows of this rank.
        held: rows of the held-out fold.
        trunk: activations of `rows`.
        held_x: activations of `held` (m, L, D), as they are.
        views: augmentation, by row of the table.
    """

    table: DenseTable
    rows: np.ndarray
    held: np.ndarray
    trunk: TrunkCache
    held_x: TrunkCache
    views: Views


class DenseObjective(Objective):
    """One dense task: its head reads the trunk's output and two later depths under its routers."""

    pooled = False
    scored = False

    def __init__(
        self,
        shared: Shared,
        domain: PreparedDomain,
        backbone: Backbone,
        settings: Settings,
        depths: int,
    ) -> None:
        assert domain.kind is not None
        self.name = domain.name
        self.shared = shared
        self.trunk = shared.trunk
        self.backbone = backbone
        self.task: DenseTask = build(domain.kind, len(domain.classes))
        usable = shared.table.usable(domain.name)
        self._mine = np.flatnonzero(usable[shared.rows])
        self._held = np.flatnonzero(usable[shared.held])
        key = f"{settings.seed}:{domain.name}:head"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(key.encode()))
            tower = backbone.image
            widths, channels = [tower.width] * depths, settings.training.head_channels
            self._head = self.task.head(widths, tower.grid, tower.image_size, channels)
            self._head.to(backbone.device)

    @property
    def rows(self) -> int:
        """Rows of this rank that have a target."""
        return len(self._mine)

    def head(self) -> nn.Module:
        """A decoder of token maps."""
        return self._head

    def inputs(self, chosen: np.ndarray) -> Tensor:
        """Activations (B, L, D) of positions among the usable rows."""
        return gather(self.trunk, np.stack([self._mine[chosen[:, 0]], chosen[:, 1]], axis=1))

    def predict(self, adapter: Adapter, seen: Any, task: int, step: int) -> Tensor:
        """The head's output (B, O, S, S) from the maps of several depths."""
        return self._head(seen)

    def loss(self, prediction: Tensor, chosen: np.ndarray, smoothing: float) -> Tensor:
        """The task's loss in the benchmark's weight, targets under the views of their images."""
        rows = self.shared.rows[self._mine[chosen[:, 0]]]
        targets = torch.from_numpy(self.shared.table.targets(self.name, rows))
        count = self.trunk.count
        boxes = np.stack(
            [
                self.shared.views.boxes(int(epoch) % count)[row]
                for row, epoch in zip(rows, chosen[:, 1], strict=True)
            ]
        )
        targets = view_targets(self.task.kind, targets, boxes).to(self.backbone.device)
        return self.task.weight * self.task.loss(prediction.float(), targets)

    def _held_batches(self, rank: int, world: int) -> list[np.ndarray]:
        size = EVALUATION_BATCH
        starts = range(rank * size, len(self._held), world * size)
        return [self._held[start : start + size] for start in starts]

    @torch.no_grad()
    def judge(self, adapter: Adapter, task: int, rank: int = 0, world: int = 1) -> Judgement:
        """Mean loss on the held-out fold; there is no score, so the loss alone decides."""
        sums = torch.zeros(2, dtype=torch.float64)
        for where in self._held_batches(rank, world):
            targets = self.shared.table.targets(self.name, self.shared.held[where])
            output = self.output(adapter, where, task)
            loss = self.task.loss(output, torch.from_numpy(targets).to(self.backbone.device))
            sums += torch.tensor([float(loss) * len(where), len(where)], dtype=torch.float64)
        if world > 1:
            total = sums.to(self.backbone.device)
            dist.all_reduce(total)
            sums = total.cpu()
        return Judgement(0.0, self.task.weight * float(sums[0] / sums[1]))

    @torch.no_grad()
    def output(self, adapter: Adapter, where: np.ndarray, task: int) -> Tensor:
        """Outputs (B, O, S, S) for positions in the held-out fold."""
        with self.backbone.kernels.exact():
            x = self.shared.held_x.take(None, where)
            return self._head(adapter.maps(x.to(self.backbone.device, torch.float32), task))

    def look(self, adapter: Adapter, task: int) -> None:
        """Pass the held-out fold through the group, for who watches."""
        for where in self._held_batches(0, 1):
            self.output(adapter, where, task)


def dense_objectives(
    settings: Settings, domains: Sequence[PreparedDomain], method: Method, rank: int, world: int
) -> dict[str, DenseObjective]:
    """The dense tasks of a stage by name, with this rank's rows."""
    shared: dict[str, Shared] = {}
    found = {}
    for domain in domains:
        if domain.kind is None:
            continue
        path = domain.tables["train"]
        if path not in shared:
            shared[path] = _shared(settings, path, method, rank, world)
        depths = len(method.backbone.image.depths(method.first_blocks[0]))
        found[domain.name] = DenseObjective(shared[path], domain, method.backbone, settings, depths)
    return found


def _shared(settings: Settings, path: str, method: Method, rank: int, world: int) -> Shared:
    options, table = settings.training, DenseTable.open(path)
    rows, held = dense_folds(settings, table)
    mine = rows[rank::world]
    views = Views(options, settings.seed, table.digest, len(table))

    def cache(chosen: np.ndarray, count: int) -> TrunkCache:
        share = options.cache_gib * len(chosen) / max(1, len(mine) + len(held))
        backbone, first = method.backbone, method.first_blocks[0]
        return TrunkCache(backbone, first, table.images, chosen, views, count, share)

    return Shared(table, mine, held, cache(mine, options.views), cache(held, 0), views)


def dense_folds(settings: Settings, table: DenseTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, the same for all tasks of a split."""
    return stratified_fold(table.labels, settings.stream.held_out, settings.seed, table.digest)
