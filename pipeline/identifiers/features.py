"""Signature features of a forward pass: CLS and mean token at some depths, then CLIP's features.

Shapes: B images, L tokens, D width, F embedding, S signature features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DepthRecorder:
    """The `record` of a forward pass: keeps what the signature reads (method 2.5)."""

    def __init__(self, depths: Sequence[int]) -> None:
        self.depths = tuple(depths)
        self.taken: list[Tensor] = []

    def __call__(self, passed: int, x_BLD: Tensor) -> None:
        """Take CLS and mean token after `passed` blocks, if that depth is wanted."""
        if passed in self.depths:
            x_BLD = x_BLD.float()  # inference may be coarser
            self.taken.append(torch.cat([x_BLD[:, 0], x_BLD[:, 1:].mean(dim=1)], dim=1))

    def select(self, rows: Tensor) -> None:
        """Keep only some images of what was taken so far."""
        self.taken = [part[rows] for part in self.taken]

    def features(self, final_BF: Tensor | None = None) -> Tensor:
        """(B, S), with CLIP's features last where they belong to the signature."""
        return torch.cat([*self.taken, *([] if final_BF is None else [final_BF])], dim=1)
