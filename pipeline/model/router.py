"""Intra-group routing: how much each expert of a group contributes.

Shapes: ... = (B,) for sample-level or (B, L) for token-level routing, E experts of the group, of
which the last S are shared. The number of experts is static, so a router's size never depends on
how many tasks were learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gating:
    """How router logits become gates (method 2.4; ASE's joint normalisation, method 3).

    Attributes:
        active: routed experts that stay on (0 = all, a dense router).
        shared: number of shared experts S, always on.
        rule: `none`, `naive` (shared gates fixed at 1) or `adaptive` (one softmax over both kinds).
        normalise: `post` = softmax over the active experts; `pre` = softmax over all, then select.
    """

    active: int = 0
    shared: int = 0
    rule: str = "none"
    normalise: str = "post"

    def __call__(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Gates (..., E) from logits (..., E); they sum to 1 except for `naive` and `pre`.

        `noise` (..., E - S) is added to the routed logits: a training pass that explores.
        """
        routed, shared = logits.split([logits.shape[-1] - self.shared, self.shared], dim=-1)
        if noise is not None:
            routed = routed + noise
        keep = routed.shape[-1] if self.active == 0 else min(self.active, routed.shape[-1])
        dropped = torch.zeros_like(routed, dtype=torch.bool)
        if keep < routed.shape[-1]:
            chosen = routed.topk(keep, dim=-1).indices
            dropped = torch.ones_like(dropped).scatter(-1, chosen, False)
        if self.rule == "naive":
            return torch.cat([self._select(routed, dropped), torch.ones_like(shared)], dim=-1)
        return self._select(
            torch.cat([routed, shared], dim=-1),
            torch.cat([dropped, torch.zeros_like(shared, dtype=torch.bool)], dim=-1),
        )

    def _select(self, logits: Tensor, dropped: Tensor) -> Tensor:
        if self.normalise == "pre":
            return logits.softmax(dim=-1).masked_fill(dropped, 0.0)
        return logits.masked_fill(dropped, float("-inf")).softmax(dim=-1)
