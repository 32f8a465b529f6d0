"""The contract of a dense task, and the registry of their kinds.

Shapes: B images, L tokens (CLS first), D width of the ViT, O output channels, S side in pixels.

    task = build("segmentation", classes=8)
    head = task.head(widths=[256, 256], grid=8, size=64)  # one width a depth, shallow first
    output_BOSS = head([tokens_BLD, tokens_BLD])
    loss = task.loss(output_BOSS, targets)              # targets as stored, see streams.targets
    metric = task.metric()
    metric.update(output_BOSS, targets)
    metric.values()                                     # {"mIoU": Score(61.2, "%", False)}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from archipelago.pipeline.dense.head import DenseHead
from archipelago.pipeline.registry import Registry


@dataclass(frozen=True)
class Score:
    """One figure of a metric; `value` is nan where no pixel could be judged."""

    value: float
    unit: str
    lower_is_better: bool


class Metric(ABC):
    """Sums over images from which figures follow; sums of shards add up to those of the whole."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}

    @abstractmethod
    def update(self, output_BOSS: Tensor, targets: Tensor) -> None:
        """Count a batch: outputs of the head and targets as stored."""

    @abstractmethod
    def values(self) -> dict[str, Score]:
        """The figures; the first one is the task's own, which Delta_m compares."""

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Add the sums of another shard of the same metric.

        Raises:
            ValueError: they are sums of another metric.
        """
        if {k: v.shape for k, v in sums.items()} != {k: v.shape for k, v in self.sums.items()}:
            raise ValueError(f"sums of another metric: {sorted(sums)} for {sorted(self.sums)}")
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value


class DenseTask(ABC):
    """One kind of dense task; a file in `tasks/`.

    Attributes:
        kind: what a stream calls it, a key of `streams.targets.KINDS`.
        weight: share of the loss when tasks are weighted as the PASCAL benchmark does.
    """

    kind: ClassVar[str]
    weight: ClassVar[float] = 1.0

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @property
    @abstractmethod
    def channels(self) -> int:
        """O, output channels of the head."""

    @abstractmethod
    def loss(self, output_BOSS: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the valid pixels; 0, with gradients of 0, where there are none."""

    @abstractmethod
    def metric(self) -> Metric:
        """A new, empty metric."""

    def head(self, widths: Sequence[int], grid: int, size: int, channels: int = 64) -> nn.Module:
        """A decoder of the tokens (B, L, D) of several depths, see `DenseHead`.

        Args:
            widths: D of each depth, shallow first.
            grid: side of the token grid.
            size: S, side of the output.
            channels: its width; more = sharper maps, more parameters.
        """
        return DenseHead(widths, grid, size, self.channels, channels)


kinds: Registry[type[DenseTask]] = Registry("archipelago.pipeline.dense.tasks", "dense task")


def register(task: type[DenseTask]) -> type[DenseTask]:
    """Class decorator: make a kind of task known by its name."""
    return kinds.register(task.kind)(task)


def build(kind: str, classes: int) -> DenseTask:
    """A task of a kind with so many classes; raises UserError that lists the known kinds."""
    return kinds.get(kind)(classes)
