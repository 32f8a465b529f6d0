"""Augmented views as pure functions of (seed, task, view, row), whoever computes them.

Shapes: B images, S pixels of a side.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.settings import TrainingSettings

ASPECT = (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop


class Views:
    """Random resized crops of a split, `views` different ones of every row.

    Args:
        settings: `crop` = range of the cropped area, `flip` = mirror half of the views.
        seed: the run's seed.
        task: the task's name.
        rows: number of rows of the split.
    """

    def __init__(self, settings: TrainingSettings, seed: int, task: str, rows: int) -> None:
        self.settings = settings
        self.rows = rows
        self._key = (seed, zlib.crc32(task.encode()))

    def boxes(self, view: int) -> np.ndarray:
        """Crops of one view for all rows, (rows, 5): centre x, centre y, half width, half height
        in units of the half side, and mirror sign."""
        draw = np.random.default_rng((*self._key, view)).random((self.rows, 5))
        low, high = self.settings.crop
        area = low + (high - low) * draw[:, 0]
        aspect = np.exp(np.log(ASPECT[0]) + np.log(ASPECT[1] / ASPECT[0]) * draw[:, 1])
        width = np.minimum(np.sqrt(area * aspect), 1.0)
        height = np.minimum(np.sqrt(area / aspect), 1.0)
        x = (1.0 - width) * (2.0 * draw[:, 2] - 1.0)
        y = (1.0 - height) * (2.0 * draw[:, 3] - 1.0)
        mirror = np.where(self.settings.flip & (draw[:, 4] < 0.5), -1.0, 1.0)
        return np.stack([x, y, width, height, mirror], axis=1).astype(np.float32)

    def apply(self, pixels_BCHW: Tensor, boxes_B5: np.ndarray) -> Tensor:
        """Crop and resize back to the full side, bicubic, (B, 3, S, S)."""
        x, y, w, h, mirror = torch.from_numpy(boxes_B5).to(pixels_BCHW.device).unbind(dim=1)
        theta = torch.zeros(len(x), 2, 3, device=pixels_BCHW.device)
        theta[:, 0, 0], theta[:, 0, 2] = w * mirror, x
        theta[:, 1, 1], theta[:, 1, 2] = h, y
        grid = F.affine_grid(theta, list(pixels_BCHW.shape), align_corners=False)
        return F.grid_sample(
            pixels_BCHW, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
