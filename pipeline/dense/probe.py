"""A head alone on frozen tokens: what the backbone knows of a task before any expert helps.

Shapes: N rows, B batch, L tokens (CLS first), D width, O output channels, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from archipelago.pipeline.dense.base import DenseTask, Metric

EVALUATION_BATCH = 64


def fit_head(
    task: DenseTask,
    head: nn.Module,
    tokens: Sequence[Tensor],
    targets: Tensor,
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    """Train a head in place on tokens (N, L, D) of each depth and targets as stored.

    Adam with a cosine to zero; the order of batches is a pure function of the seed.

    Returns:
        The loss of every step.
    """
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = np.random.default_rng(seed)
    rows = np.concatenate(
        [order.permutation(len(targets)) for _ in range(-(-steps * batch // len(targets)))]
    )
    losses = []
    for step in range(steps):
        chosen = torch.from_numpy(rows[step * batch : (step + 1) * batch])
        loss = task.loss(head([x[chosen].float() for x in tokens]), targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def judge_head(
    task: DenseTask, head: nn.Module, tokens: Sequence[Tensor], targets: Tensor
) -> Metric:
    """The task's metric over all rows."""
    metric = task.metric()
    for start in range(0, len(targets), EVALUATION_BATCH):
        here = slice(start, start + EVALUATION_BATCH)
        metric.update(head([x[here].float() for x in tokens]), targets[here])
    return metric
