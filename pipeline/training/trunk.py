"""Trunk activations of the training rows: computed once per view, then read.

A rank owns its rows for the whole stage, so no activation crosses a machine. Activations are
computed in fixed chunks and rounded to the cache's type before use, whether or not they are kept:
an interrupted stage sees the same numbers when it comes back.
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
        count: number of different views V; epoch e uses view e mod V.
        budget_gib: memory for cached views; views beyond it are computed again when needed.
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
        self.shape = (len(rows), backbone.image.tokens, backbone.image.trunk_width(first))
        size = int(np.prod(self.shape)) * CACHE_DTYPE.itemsize
        self.capacity = max(1, min(count, int(budget_gib * 2**30 / max(size, 1))))
        self.seconds = 0.0  # spent computing activations
        self._kept: dict[int, Tensor] = {}

    def view(self, number: int | None) -> Tensor:
        """(rows, L, D) of one view on the CPU; None = the image as it is."""
        if number is None:
            return self._compute(None)
        number %= self.count
        if number not in self._kept:
            if len(self._kept) >= self.capacity:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self._compute(number)
        return self._kept[number]

    @torch.no_grad()
    def _compute(self, number: int | None) -> Tensor:
        clock = time.perf_counter()
        tower = self.backbone.image
        boxes = None if number is None else self.views.boxes(number)[self.rows]
        out = torch.empty(self.shape, dtype=CACHE_DTYPE)
        pace = Pace("activations of the trunk", len(self.rows))
        for start in range(0, len(self.rows), CHUNK):
            rows = self.rows[start : start + CHUNK]
            pace.step(len(rows))
            pixels = self.backbone.normalise(self.images(rows))
            if boxes is not None:
                pixels = self.views.apply(pixels, boxes[start : start + CHUNK])
            with self.backbone.kernels.exact():
                x_BLD = tower.trunk(pixels, self.first)
            out[start : start + CHUNK] = x_BLD.to("cpu", CACHE_DTYPE)
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
        parts.append(trunk.view(int(epoch))[torch.from_numpy(chosen[at, 0])])
        order.append(at)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(order)))]
