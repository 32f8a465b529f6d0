"""What is seen of the routers while a stage trains: probabilities, gates, and noise to explore.

Shapes: B batch, L tokens (1 for sample-level routing), E experts, S of them shared, T tasks of the
stage, N watched routers (image blocks, then text blocks).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


def describe_experts(watch: Watch, shared: int) -> dict[str, Any] | None:
    """How tasks use the experts of each router, as plain data; None where there is no router.

    Returns:
        `routers`: names such as `image 2`, the third adapted image block; `load[n][t][e]`: mean
        gate of expert e on tokens of task t; `shared_gate[n]`: gates of the `shared` shared experts
        of a token, summed; `information[n]`: mutual information of task and expert, nats.
    """
    if not watch.routers:
        return None
    loads, tokens = watch.loads()
    mean_NTE = loads / tokens[..., None].clamp(min=1)
    gate_N = loads[..., loads.shape[-1] - shared :].sum(dim=(1, 2)) / tokens.sum(dim=1)
    information_N = mutual_information(watch.probabilities().detach())
    return {
        "routers": [f"{encoder} {block}" for encoder, block in watch.routers],
        "load": [[[round(x, 5) for x in row] for row in task] for task in mean_NTE.tolist()],
        "shared": shared,
        "shared_gate": [round(x, 5) for x in gate_N.tolist()],
        "information": [round(max(x, 0.0), 6) for x in information_N.tolist()],
    }


class GateLog:
    """Gates of some training steps in short: the weight of shared experts, the information.

    Args:
        tasks: number of tasks T of the stage.
    """

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self._loads: Tensor | None = None
        self._tokens: Tensor | None = None
        self._information: list[Tensor] = []

    def add(self, watch: Watch) -> None:
        """Count one step."""
        if not watch.routers:
            return
        loads, tokens = watch.loads()
        self._loads = loads if self._loads is None else self._loads + loads
        self._tokens = tokens if self._tokens is None else self._tokens + tokens
        if self._tasks > 1:
            self._information.append(mutual_information(watch.probabilities().detach()).mean())

    def take(self, shared: int) -> dict[str, float]:
        """Means over the steps since the last call, then empty; nothing where there is nothing.

        `shared_gate`: gates of the `shared` shared experts of a token, summed, mean over routers.
        `information`: mutual information of task and expert in nats, mean over routers.
        """
        found = {}
        if self._loads is not None and self._tokens is not None and shared:
            part = self._loads[..., -shared:].sum(dim=(1, 2)) / self._tokens.sum(dim=1)
            found["shared_gate"] = float(part.mean())
        if self._information:
            found["information"] = float(torch.stack(self._information).mean())
        self._loads, self._tokens, self._information = None, None, []
        return found
