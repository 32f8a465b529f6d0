"""What is seen of the routers while a stage trains: probabilities, gates, and noise to explore.

Shapes: B batch, L tokens (1 for sample-level routing), E experts, S of them shared, T tasks of the
stage, N watched routers (image blocks, then text blocks).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

EPSILON = 1e-4  # inside the logarithm of the mutual information


@dataclass
class Watch:
    """Looks on during one training pass; a fresh one for each step.

    Attributes:
        tasks: number of tasks T of the stage.
        std: standard deviation of the noise on routed logits.
        generator: where the noise comes from, so that a step can be repeated.
        encoder: what is running now, `image` or `text`.
        task: task of each sample that is running now, or one index for all.
    """

    tasks: int = 1
    std: float = 0.0
    generator: torch.Generator | None = None
    encoder: str = "image"
    task: int | Tensor = 0
    _block: int = 0
    _sums: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _loads: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _tokens: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def enter(self, encoder: str, task: int | Tensor) -> None:
        """A pass through an encoder begins at its first adapted block."""
        self.encoder, self.task, self._block = encoder, task, 0

    def noise(self, routed: Tensor) -> Tensor | None:
        """Noise for routed logits, or None where none is wanted."""
        if self.std == 0.0:
            return None
        drawn = torch.randn(routed.shape, generator=self.generator, dtype=routed.dtype)
        return self.std * drawn.to(routed.device)

    def note(self, logits_BLE: Tensor, gates_BLE: Tensor) -> None:
        """Take down one router's answer: probabilities over all experts, and gates."""
        key = (self.encoder, self._block)
        self._block += 1
        count = torch.full((len(logits_BLE),), float(logits_BLE.shape[1]), device=logits_BLE.device)
        for kept, value in (
            (self._sums, logits_BLE.softmax(dim=-1).sum(dim=1)),
            (self._loads, gates_BLE.detach().sum(dim=1)),
            (self._tokens, count[:, None]),
        ):
            found = self._by_task(value)
            kept[key] = found if key not in kept else kept[key] + found

    def _by_task(self, value_BE: Tensor) -> Tensor:
        total = value_BE.new_zeros(self.tasks, value_BE.shape[1])
        if isinstance(self.task, int):
            index = torch.full((len(value_BE),), self.task, device=value_BE.device)
        else:
            index = self.task
        return total.index_add(0, index, value_BE)

    @property
    def routers(self) -> list[tuple[str, int]]:
        """(encoder, position among its adapted blocks) of the watched routers, in a fixed order."""
        return sorted(self._sums)

    def probabilities(self) -> Tensor:
        """Sums over tokens of the probabilities over all experts, (N, T, E), with their graph."""
        return torch.stack([self._sums[key] for key in self.routers])

    def loads(self) -> tuple[Tensor, Tensor]:
        """Sums of gates (N, T, E) and numbers of tokens (N, T)."""
        loads = torch.stack([self._loads[key] for key in self.routers])
        return loads, torch.stack([self._tokens[key][:, 0] for key in self.routers])


def mutual_information(sums_NTE: Tensor) -> Tensor:
    """`sum P(t,e) log(P(t,e) / (P(t) P(e)) + 1e-4)` of each router, (N,), in nats (method 3).

    Args:
        sums_NTE: what `Watch.probabilities` gives, summed over all workers.
    """
    joint = sums_NTE / sums_NTE.sum(dim=(1, 2), keepdim=True)
    apart = joint.sum(dim=2, keepdim=True) * joint.sum(dim=1, keepdim=True)
    return (joint * (joint / apart + EPSILON).log()).sum(dim=(1, 2))
