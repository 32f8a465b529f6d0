"""A light decoder from a ViT's tokens to a map at the input's resolution.

Shapes: B images, L tokens (CLS first), D width of the ViT, C channels, g side of the token grid,
S side in pixels, O output channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STORED = "head"
SMALLEST = 16  # channels at full resolution


class DenseHead(nn.Module):
    """Depths are projected and summed at twice the grid, then refined while the map grows to S.

    A token keeps much of its patch's inside in its channels. So growing is a pixel shuffle: a place
    becomes 2 x 2 places with a quarter of the channels each, after a 3 x 3 convolution.

    Args:
        widths: D of each depth, shallow first.
        grid: g.
        size: S, side of the output.
        outputs: O.
        channels: C at twice the grid; halved with every doubling, down to 16.
    """

    def __init__(
        self, widths: Sequence[int], grid: int, size: int, outputs: int, channels: int = 64
    ) -> None:
        super().__init__()
        if size < 2 * grid:
            raise ValueError(f"a head for {size} pixels needs a token grid of at most {size // 2}")
        self.grid = grid
        self.size = size
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.lifts = nn.ModuleList(nn.Linear(width, 4 * channels) for width in widths)
        self.steps = nn.ModuleList()
        for _ in range(int(math.log2(size / (2 * grid)))):
            smaller = max(SMALLEST, channels // 2)
            self.steps.append(nn.Conv2d(channels, 4 * smaller, 3, padding=1))
            channels = smaller
        self.output = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Tokens (B, L, D) of each depth, CLS first, to (B, O, S, S)."""
        lifted = [
            lift(norm(x_BLD[:, 1:]))
            for x_BLD, norm, lift in zip(tokens, self.norms, self.lifts, strict=True)
        ]
        x_BLC = torch.stack(lifted).sum(dim=0)
        x = x_BLC.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = F.gelu(F.pixel_shuffle(x, 2))
        for step in self.steps:
            x = F.gelu(F.pixel_shuffle(step(x), 2))
        if x.shape[-1] != self.size:  # patches whose side is no power of two
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return self.output(x)


def stored_head(task: str, head: nn.Module) -> dict[str, Tensor]:
    """A head's tensors as they are kept in `group.safetensors`: `head/<task>/<name>`."""
    found = head.state_dict().items()
    return {f"{STORED}/{task}/{name}": t.detach().cpu().contiguous() for name, t in found}


def stored_heads(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Task -> state of its head, of all heads in a stored group."""
    heads: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == STORED:
            task, _, name = rest.partition("/")
            heads.setdefault(task, {})[name] = tensor
    return heads
