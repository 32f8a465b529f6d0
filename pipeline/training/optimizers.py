"""What takes the steps: AdamW, Muon for the experts' matrices, and an average of the weights.

Shapes: m, n rows and columns of a matrix; leading dimensions are a batch of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from archipelago.pipeline.settings import TrainingSettings

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the odd polynomial that is iterated
ADAMW_SCALE = 0.2  # root mean square of an AdamW step, in learning rates


def make_optimizer(
    settings: TrainingSettings, parameters: Sequence[nn.Parameter], peak: float
) -> torch.optim.Optimizer:
    """The optimiser of a stage.

    Args:
        settings: `optimizer` and `weight_decay` of it.
        parameters: what is trained.
        peak: learning rate.
    """
    kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(parameters, lr=peak, weight_decay=settings.weight_decay, foreach=True)


class Muon(torch.optim.AdamW):
    """Momentum whose matrices are made orthogonal; AdamW for all that is no matrix.

    `W <- W - lr 0.2 sqrt(max(m, n)) UV'` for the momentum `USV'`: every direction that a matrix
    can move in counts alike. The factor gives a step the size of AdamW's, so that its learning
    rates hold. (Jordan et al. 2024; the scale of Liu et al. 2025.)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; matrices first, then all others."""
        kept: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or not _is_matrix(weight):
                    continue
                kept.append((weight, weight.grad))
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                    state["step"] = torch.tensor(0.0)  # AdamW looks for it when it is restored
                momentum = state["momentum"].lerp_(weight.grad, 1.0 - MOMENTUM)
                update = orthogonalised(weight.grad.lerp(momentum, MOMENTUM))
                scale = ADAMW_SCALE * max(weight.shape[-2:]) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)
                weight.grad = None
        found = super().step(closure)
        for weight, gradient in kept:
            weight.grad = gradient
        return found


def orthogonalised(x: Tensor) -> Tensor:
    """`UV'` of matrices (..., m, n) `USV'`, nearly: five Newton-Schulz steps, singular values of
    0.7 to 1.2. A zero matrix stays zero.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.mT if tall else y


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and min(weight.shape[-2:]) > 1


class Average:
    """Polyak's average of weights: `a <- d a + (1 - d) w`, from the first step on.

    Early on the decay `d` is less, `(1 + t) / (10 + t)` at step t, so that the start is forgotten.
    With a decay of 0 it is the weights themselves, and costs nothing.

    Attributes:
        values: the average by name; empty where there is none.
    """

    def __init__(self, decay: float, module: nn.Module, values: dict[str, Tensor] | None) -> None:
        self._decay, self._module = decay, module
        self.values: dict[str, Tensor] = {}
        if decay:
            held = values or {}
            self.values = {
                name: (held[name].to(weight.device) if held else weight.detach()).clone()
                for name, weight in self._named()
            }

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, w) for n, w in self._module.named_parameters() if w.requires_grad)

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        for name, weight in self._named() if self.values else ():
            self.values[name].lerp_(weight, 1.0 - decay)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The module with the average in place of its weights."""
        if not self.values:
            yield
            return
        own = {name: weight.detach().clone() for name, weight in self._named()}
        _fill(self._named(), self.values)
        try:
            yield
        finally:
            _fill(self._named(), own)


@torch.no_grad()
def _fill(named: Iterable[tuple[str, nn.Parameter]], values: dict[str, Tensor]) -> None:
    for name, weight in named:
        weight.copy_(values[name])
