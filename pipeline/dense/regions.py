"""Metrics of labelled regions: intersection over union, and the saliency benchmark's maxima.

Shapes: B images, C classes, S side in pixels, K thresholds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from archipelago.pipeline.dense.base import Metric, Score
from archipelago.pipeline.dense.losses import without_empty
from archipelago.pipeline.streams.targets import IGNORE

THRESHOLDS = np.linspace(0.2, 0.9, 15)  # of the saliency benchmark


class MeanIoU(Metric):
    """`mIoU = mean_c TP_c / (TP_c + FP_c + FN_c)` from the confusion of all valid pixels.

    A class that occurs neither in the targets nor in the answers is left out of the mean.

    Args:
        classes: C.
        skip_empty: leave out images that show no class but 0, as for human parts.
    """

    def __init__(self, classes: int, skip_empty: bool = False) -> None:
        super().__init__()
        self.skip_empty = skip_empty
        self.sums = {"confusion": np.zeros((classes, classes), np.int64)}

    def update(self, output_BOSS: Tensor, targets: Tensor) -> None:
        """Count a batch of logits (B, C, S, S) and labels (B, S, S)."""
        targets = without_empty(targets) if self.skip_empty else targets
        classes = len(self.sums["confusion"])
        valid = targets != IGNORE
        pairs = targets[valid].long() * classes + output_BOSS.argmax(dim=1)[valid]
        counts = torch.bincount(pairs, minlength=classes * classes).cpu().numpy()
        self.merge({"confusion": counts.reshape(classes, classes)})

    def values(self) -> dict[str, Score]:
        """`mIoU` and pixel `accuracy`, in percent."""
        confusion = self.sums["confusion"].astype(np.float64)
        right = confusion.diagonal()
        union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
        iou = np.where(union > 0, right / np.maximum(union, 1), np.nan)
        judged = confusion.sum()
        mean = float(np.nanmean(iou)) if judged else np.nan
        accuracy = right.sum() / judged if judged else np.nan
        return {
            "mIoU": Score(100.0 * mean, "%", False),
            "accuracy": Score(100.0 * float(accuracy), "%", False),
        }


class Saliency(Metric):
    """The protocol of ASTMT: 15 thresholds 0.2 .. 0.9, averaged over images, then the maximum.

    `mIoU = max_k mean_i IoU_ik` (an image without salient pixels and without answers counts 1) and
    `maxF = max_k 2 P_k R_k / (P_k + R_k)` with `P_k = mean_i precision_ik`, `R_k = mean_i recall`.
    """

    def __init__(self) -> None:
        super().__init__()
        zeros = np.zeros(len(THRESHOLDS))
        self.sums = {"iou": zeros, "precision": zeros, "recall": zeros, "images": np.zeros(1)}

    def update(self, output_BOSS: Tensor, targets: Tensor) -> None:
        """Count a batch of logits (B, 1, S, S) and labels (B, S, S)."""
        p = torch.sigmoid(output_BOSS[:, 0].float()).flatten(1)
        valid = (targets != IGNORE).flatten(1)
        truth = (targets == 1).flatten(1)
        steps = torch.from_numpy(THRESHOLDS).to(p)
        answer = (p[None] > steps[:, None, None]) & valid
        hits = (answer & truth).sum(dim=2).double()
        answered, wanted = answer.sum(dim=2).double(), truth.sum(dim=1).double()
        union = answered + wanted - hits
        iou = torch.where(union > 0, hits / union.clamp(min=1), 1.0)
        judged = valid.any(dim=1)
        each = {
            "iou": iou,
            "precision": hits / answered.clamp(min=1),
            "recall": hits / wanted.clamp(min=1),
        }
        sums = {name: value[:, judged].sum(dim=1).cpu().numpy() for name, value in each.items()}
        self.merge({**sums, "images": np.array([float(judged.sum())])})

    def values(self) -> dict[str, Score]:
        """`mIoU` and `maxF`, in percent."""
        count = self.sums["images"][0]
        if not count:
            return {name: Score(np.nan, "%", False) for name in ("mIoU", "maxF")}
        p, r = self.sums["precision"] / count, self.sums["recall"] / count
        f = 2 * p * r / (p + r + 1e-12)
        return {
            "mIoU": Score(100.0 * float((self.sums["iou"] / count).max()), "%", False),
            "maxF": Score(100.0 * float(f.max()), "%", False),
        }
