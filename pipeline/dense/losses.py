"""Losses over the valid pixels of a batch. Without any, a loss is 0 and its gradients are 0.

Shapes: B images, C classes, S side in pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.streams.targets import IGNORE


def cross_entropy(logits_BCSS: Tensor, labels_BSS: Tensor) -> Tensor:
    """Mean over the pixels whose label is not 255."""
    labels = labels_BSS.long()
    valid = (labels != IGNORE).sum().clamp(min=1)
    total = F.cross_entropy(logits_BCSS.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / valid


def balanced_bce(logits_B1SS: Tensor, labels_BSS: Tensor, positive: float | None) -> Tensor:
    """`mean( w y softplus(-z) + (1 - w) (1 - y) softplus(z) )` over the pixels that are not 255.

    Args:
        logits_B1SS: z.
        labels_BSS: y, 0 or 1, 255 = ignored.
        positive: w; None = the share of negatives among the batch's valid pixels.
    """
    z, labels = logits_B1SS[:, 0].float(), labels_BSS
    valid = (labels != IGNORE).float()
    y = (labels == 1).float()
    count = valid.sum().clamp(min=1.0)
    w = (valid - y).sum() / count if positive is None else positive
    return (valid * (w * y * F.softplus(-z) + (1 - w) * (1 - y) * F.softplus(z))).sum() / count


def normals_loss(
    output_B3SS: Tensor, normals_BSS3: Tensor, norm: Literal["l1", "cosine"] = "l1"
) -> Tensor:
    """Distance of the normalised output to the unit normals, over the pixels that have one.

    Args:
        output_B3SS: vectors of any length.
        normals_BSS3: int8, 0 0 0 = no normal.
        norm: `l1` = mean absolute difference a component; `cosine` = mean of 1 - cosine.
    """
    n = F.normalize(normals_BSS3.float(), dim=-1)
    v = F.normalize(output_B3SS.float().permute(0, 2, 3, 1), dim=-1)
    valid = (normals_BSS3 != 0).any(dim=-1)
    count = valid.sum().clamp(min=1)
    if norm == "l1":
        each = (v - n).abs().mean(dim=-1)
    else:
        each = 1.0 - (v * n).sum(dim=-1)
    return torch.where(valid, each, 0.0).sum() / count


def without_empty(parts_BSS: Tensor) -> Tensor:
    """Part labels in which images that show no part at all are ignored (255) as a whole."""
    shown = ((parts_BSS > 0) & (parts_BSS != IGNORE)).flatten(1).any(dim=1)
    return torch.where(shown[:, None, None], parts_BSS, torch.full_like(parts_BSS, IGNORE))
