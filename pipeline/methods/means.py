"""Class means of frozen CLIP's features over a stage's training images.

Shapes: B images, L tokens, D width, C classes, F embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.methods.base import Method

BATCH = 128  # images whose frozen features are averaged at once


@torch.no_grad()
def class_means(method: Method, task: Any, like_CF: Tensor, world: int) -> Tensor:
    """Normalised means (C, F) over all workers' rows; zeros for a class without any.

    Args:
        method: gives frozen CLIP.
        task: the objective, with this worker's rows.
        like_CF: says how many classes there are, and of which type and place the means are.
        world: number of workers.
    """
    sums = torch.zeros_like(like_CF)
    for start in range(0, len(task.trunk), BATCH):
        x_BLD = task.trunk[start : start + BATCH].to(method.backbone.device, torch.float32)
        with method.backbone.kernels.exact():
            v_BF = method.frozen_features(x_BLD)
        labels = task.labels[start : start + BATCH].to(v_BF.device)
        sums.index_add_(0, labels, v_BF.to(sums.dtype))
    if world > 1:
        dist.all_reduce(sums)
    return F.normalize(sums, dim=-1)
