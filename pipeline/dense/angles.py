"""Metric of surface normals: the angle between what is said and what is there.

Shapes: B images, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.dense.base import Metric, Score

WITHIN = (11.25, 22.5, 30.0)  # degrees


class MeanAngle(Metric):
    """`mean arccos <v, n>` in degrees over all pixels that have a normal, of all images alike."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = {
            "pixels": np.zeros(1),
            "degrees": np.zeros(1),
            "squares": np.zeros(1),
            "within": np.zeros(len(WITHIN)),
        }

    def update(self, output_BOSS: Tensor, targets: Tensor) -> None:
        """Count a batch of vectors (B, 3, S, S) and normals (B, S, S, 3) int8."""
        valid = (targets != 0).any(dim=-1)
        n = F.normalize(targets[valid].double(), dim=-1)
        v = F.normalize(output_BOSS.permute(0, 2, 3, 1)[valid].double(), dim=-1)
        degrees = torch.rad2deg(torch.arccos((v * n).sum(dim=-1).clamp(-1.0, 1.0))).cpu().numpy()
        self.merge(
            {
                "pixels": np.array([float(len(degrees))]),
                "degrees": np.array([degrees.sum()]),
                "squares": np.array([(degrees**2).sum()]),
                "within": np.array([float((degrees < limit).sum()) for limit in WITHIN]),
            }
        )

    def values(self) -> dict[str, Score]:
        """`mean` and `rmse` in degrees, and the shares of pixels within 11.25, 22.5 and 30."""
        count = self.sums["pixels"][0] or np.nan
        scores = {
            "mean": Score(float(self.sums["degrees"][0] / count), "degrees", True),
            "rmse": Score(float(np.sqrt(self.sums["squares"][0] / count)), "degrees", True),
        }
        for limit, inside in zip(WITHIN, self.sums["within"], strict=True):
            scores[f"within {limit:g}"] = Score(100.0 * float(inside / count), "%", False)
        return scores
