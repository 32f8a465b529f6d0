"""Targets under the same random views as their images.

A view is a box of `pipeline.training.views.Views.boxes`: a pure function of (seed, name, view,
row), so images and targets stay aligned if both are cut by the same boxes.

Shapes: B images, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def view_targets(kind: str, targets: Tensor, boxes_B5: np.ndarray) -> Tensor:
    """Cut targets by boxes and bring them back to S x S, each pixel from the nearest one.

    Args:
        kind: of the task; mirrored normals turn their x.
        targets: as stored, (B, S, S) uint8 or (B, S, S, 3) int8.
        boxes_B5: centre x, centre y, half width, half height in units of the half side, and the
            mirror's sign.

    Returns:
        The same shape and type.
    """
    x, y, w, h, mirror = torch.from_numpy(boxes_B5).to(targets.device).unbind(dim=1)
    theta = torch.zeros(len(x), 2, 3, device=targets.device)
    theta[:, 0, 0], theta[:, 0, 2] = w * mirror, x
    theta[:, 1, 1], theta[:, 1, 2] = h, y
    planes = targets.unsqueeze(1) if targets.ndim == 3 else targets.permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    cut = F.grid_sample(
        planes.float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    if kind == "normals":
        cut[:, 0] *= mirror[:, None, None]
    out = cut.to(targets.dtype)  # exact: bytes are whole numbers in float too
    return out.squeeze(1) if targets.ndim == 3 else out.permute(0, 2, 3, 1)
