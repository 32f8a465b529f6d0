"""Which groups answer for each image of a batch, and how strongly.

Shapes: B batch, K groups in a mix, N adapted blocks of an encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskMix:
    """The function of one learned task: its own group first, then its neighbours.

    Attributes:
        groups: names of the K groups.
        weights: encoder -> (K, N) weight of each group in each adapted block; own group = 1 for
            the residual rule `y_t + sum_j a_{t,j,l} exp(-d(t,j)/T) y_j` (method 2.6).
    """

    groups: tuple[str, ...]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Mix:
    """A batch of mixes as tensors; a value, never module state.

    Attributes:
        groups: (B, K) indices into the stacked groups, -1 where a sample uses fewer; B = 1
            means that the whole batch shares one mix.
        weights: encoder -> (B, K, N).
    """

    groups: Tensor
    weights: dict[str, Tensor]

    @property
    def uniform(self) -> bool:
        """True if every sample uses the same groups and weights."""
        return len(self.groups) == 1


def stack_mixes(mixes: list[TaskMix | None], index: dict[str, int], blocks: dict[str, int]) -> Mix:
    """Per-sample mixes (None = frozen CLIP) to one `Mix`, padded with -1 and weight 0."""
    width = max([len(mix.groups) for mix in mixes if mix is not None], default=1)
    groups = torch.full((len(mixes), width), -1, dtype=torch.long)
    weights = {name: torch.zeros(len(mixes), width, n) for name, n in blocks.items()}
    for row, mix in enumerate(mixes):
        if mix is None:
            continue
        groups[row, : len(mix.groups)] = torch.tensor([index[name] for name in mix.groups])
        for name in blocks:
            weights[name][row, : len(mix.groups)] = mix.weights[name]
    return Mix(groups, weights)
