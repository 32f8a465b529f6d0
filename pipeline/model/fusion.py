"""Answers for images of no learned task: frozen CLIP fused with the likeliest groups.

`p = (1 - lam_t) p_CLIP + lam_t sum_s p(s|x) p_s` over the likeliest groups s, with
`lam_t = lam_max * t / (t + K)` after t stages (method 2.8). Probabilities, never raw scores.
Shapes: B images, C classes, M groups asked.
"""

from __future__ import annotations

import numpy as np


def unseen_weight(learned: int, lambda_max: float, steps: float) -> float:
    """`lam_t` after `learned` stages; `steps` is K, the stage count at half of `lambda_max`."""
    return 0.0 if learned == 0 else lambda_max * learned / (learned + steps)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities over the last axis."""
    z = logits / temperature
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def likeliest(shares_BT: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` likeliest tasks of each image: indices (B, M) and their shares (B, M)."""
    order = np.argsort(-shares_BT, axis=1, kind="stable")[:, :count]
    return order, np.maximum(np.take_along_axis(shares_BT, order, axis=1), 1e-12)


def fuse(
    frozen_BC: np.ndarray, groups_BMC: np.ndarray, shares_BM: np.ndarray, weight: float
) -> np.ndarray:
    """Fused class probabilities (B, C).

    Args:
        frozen_BC: probabilities of frozen CLIP.
        groups_BMC: probabilities of the M likeliest groups.
        shares_BM: identifier probabilities of these groups, normalised here.
        weight: lambda in [0, 1]; 0 returns `frozen_BC` unchanged.
    """
    if weight == 0.0 or groups_BMC.shape[1] == 0:
        return frozen_BC
    shares = shares_BM / shares_BM.sum(axis=1, keepdims=True)
    return (1.0 - weight) * frozen_BC + weight * np.einsum("bm,bmc->bc", shares, groups_BMC)
