"""Trunk activations of a rank's rows: computed once per view as far as the memory reaches.

A rank owns its rows for the whole stage, so no activation crosses a machine. The budget is filled
view by view, row by row; what lies beyond it is computed when a batch asks for it. All activations
are rounded to the cache's type before use, whether or not they are kept, and which of them are kept
follows from the settings: an interrupted stage sees the same numbers when it comes back.
Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.pace import Pace
from archipelago.pipeline.training.views import Views

CHUNK = 64
CACHE_DTYPE = torch.float16


class TrunkCache:
    """Activations at the first adapted block for the rows of one rank.

    Args:
        backbone: frozen CLIP.
        first: first adapted image block; 0 caches the embedding of the image, -1 its pixels.
        images: reads uint8 (n, S, S, 3) by row.
        rows: the rank's rows.
        views: augmentation.
        count: number of different views V; epoch e uses view e mod V. 0 = images as they are only,
            which alone are kept then.
        budget_gib: memory for kept activations.

    Attributes:
        seconds: spent computing activations.
        kept: how many activations are kept, over all views.
    """

    def __init__(
        self,
        backbone: Backbone,
        first: int,
        images: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray,
        views: Views,
        count: int,
        budget_gib: float,
    ) -> None:
        self.backbone = backbone
        self.first = first
        self.images = images
        self.rows = rows
        self.views = views
        self.count = count
        self.shape = (backbone.image.tokens, backbone.image.trunk_width(first))
        size = int(np.prod(self.shape)) * CACHE_DTYPE.itemsize
        self.kept = min(max(1, count) * len(rows), int(budget_gib * 2**30 / max(size, 1)))
        self.seconds = 0.0
        self._views: dict[int | None, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, number: int | None, positions: np.ndarray) -> Tensor:
        """(n, L, D) of some of the rows under one view, on the CPU; None = images as they are.

        Args:
            number: the epoch.
            positions: (n,) among the rank's rows.
        """
        if number is not None:
            number %= self.count
        head = self._head(number)
        inside = positions < len(head)
        if inside.all():
            return head[torch.from_numpy(positions)]
        fresh = self._compute(number, positions[~inside])
        if not inside.any():
            return fresh
        out = torch.empty((len(positions), *self.shape), dtype=CACHE_DTYPE)
        out[torch.from_numpy(inside)] = head[torch.from_numpy(positions[inside])]
        out[torch.from_numpy(~inside)] = fresh
        return out

    def __getitem__(self, part: slice) -> Tensor:
        """Activations of consecutive rows as they are."""
        return self.take(None, np.arange(len(self))[part])

    def _head(self, number: int | None) -> Tensor:
        """The first rows of a view, as far as they are kept."""
        if number not in self._views:
            before = 0 if number is None else number * len(self)
            room = 0 if (number is None) != (self.count == 0) else self.kept - before
            first = np.arange(min(max(0, room), len(self)))
            self._views[number] = self._compute(number, first)
        return self._views[number]

    @torch.no_grad()
    def _compute(self, number: int | None, positions: np.ndarray) -> Tensor:
        clock = time.perf_counter()
        tower, rows = self.backbone.image, self.rows[positions]
        kernels = self.backbone.kernels
        boxes = None if number is None else self.views.boxes(number)[rows]
        out = torch.empty((len(rows), *self.shape), dtype=CACHE_DTYPE)
        pace = Pace("activations of the trunk", len(rows))
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            pixels = self.backbone.normalise(self.images(rows[part]))
            if boxes is not None:
                pixels = self.views.apply(pixels, boxes[part])
            with kernels.exact() if boxes is None else kernels.training():
                x_BLD = tower.trunk(pixels, self.first)
            out[part] = x_BLD.to("cpu", CACHE_DTYPE)
            pace.step(len(rows[part]))
        self.seconds += time.perf_counter() - clock
        return out


def batch_rows(
    seed: int,
    seeding: int,
    rank: int,
    count: int,
    step: int,
    size: int,
    task: int = 0,
    tasks: int = 1,
) -> np.ndarray:
    """Positions and epochs of one task's part of a local batch, (n, 2): a pure function.

    Each rank walks its own rows of a task in a new random order every epoch; a batch may span two
    epochs. The places of all batches, one after another, go round the tasks of the stage: each has
    `size / tasks` in a step, one more in some where that is no whole number, and none is starved.
    """
    first, end = (_places(at * size, task, tasks) for at in (step, step + 1))
    out = np.empty((end - first, 2), dtype=np.int64)
    own = (task,) if task else ()
    for i in range(end - first):
        epoch, position = divmod(first + i, count)
        if i == 0 or position == 0:
            order = np.random.default_rng((seed, seeding, rank, epoch, *own)).permutation(count)
        out[i] = order[position], epoch
    return out


def _places(before: int, task: int, tasks: int) -> int:
    """How many of the first `before` places belong to a task."""
    return max(0, (before - task + tasks - 1) // tasks)


def gather(trunk: TrunkCache, chosen: np.ndarray) -> Tensor:
    """Activations (B, L, D) of (position, epoch) pairs (B, 2), in their order."""
    parts, order = [], []
    for epoch in np.unique(chosen[:, 1]):
        at = np.flatnonzero(chosen[:, 1] == epoch)
        parts.append(trunk.take(int(epoch), chosen[at, 0]))
        order.append(at)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(order)))]
