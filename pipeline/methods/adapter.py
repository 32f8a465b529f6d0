"""What a stage trains by gradient descent: an adapter on the trunk of frozen CLIP.

Shapes: B batch, L tokens, D width, C classes, F embedding, T tasks of the stage.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from archipelago.pipeline.model.watch import Watch


@dataclass(frozen=True, order=True)
class Neighbour:
    """An earlier task that may help a new one, `distance` apart; ordered by distance."""

    distance: float
    task: str


@dataclass(frozen=True)
class StageContext:
    """What is known when a stage starts: its number, its name, its nearest earlier tasks.

    `task` is the name of the stage: that of its task, or of several; `tasks` holds their names,
    `sizes` how many classes each has.
    """

    stage: int
    task: str
    neighbours: tuple[Neighbour, ...] = ()
    tasks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


class Adapter(nn.Module, ABC):
    """The trainable part of one stage, from the trunk's activations to features.

    Attributes:
        reads_names: class features come of prompts; False = of parameters of its own.
        watch: looks on while a training pass runs, None otherwise.
        heads: parameters of dense tasks' own, by number; only in a stage that has such tasks.
        log_variance: (T,) learned weights of the losses of a stage's tasks; only where wanted.
    """

    reads_names: ClassVar[bool] = True
    watch: Watch | None = None
    log_variance: nn.Parameter
    heads: nn.ModuleDict

    @abstractmethod
    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Normalised image features (B, F) from activations at the first adapted image block.

        `task` counts the tasks of the stage: one for all images, or one per image (B,).
        """

    @abstractmethod
    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Normalised caption features (C, F) from activations at the first adapted text block."""

    def maps(self, x_BLD: Tensor, task: int | Tensor = 0) -> list[Tensor]:
        """Token maps (B, L, D) of several depths, for dense tasks; only where `Method.dense`."""
        raise NotImplementedError

    def rest_text(self) -> None:
        """No task of the stage reads class names: leave out of training what adapts them."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """Tensors of `group.safetensors`."""

    def borrowed(self) -> list[dict[str, Any]]:
        """Neighbours in use, as `{"task", "distance"}`."""
        return []

    def optional_neighbours(self) -> list[str]:
        """Neighbours that may still be dropped after training."""
        return []

    def keep_neighbours(self, tasks: Sequence[str]) -> None:
        """Drop all neighbours but these."""

    def without(self, tasks: Sequence[str]) -> AbstractContextManager[None]:
        """While it lasts, these neighbours are silent."""
        return nullcontext()

    def penalty(self, inputs: Sequence[Tensor], step: int) -> Tensor | None:
        """What a step's loss gets beside those of the tasks, after they were predicted.

        Args:
            inputs: activations (B, L, D) of each task of the stage.
            step: number of the step, from 0.
        """
        return None

    def correct(self) -> None:
        """Change the gradients of a step before they are clipped and taken."""

    def stepped(self, done: int, steps: int) -> None:
        """After an optimiser's step, `done` of `steps`; what is kept is kept in buffers."""

    def settle(self) -> None:
        """After the last step, with the best weights back: turn them into what the stage leaves."""

    def forward(self, compute: Callable[[Adapter], Any]) -> Any:
        """`compute(self)`: one pass, whatever it holds, as data-parallel training needs it."""
        return compute(self)


def pack(value: Any) -> Tensor:
    """Plain data as bytes in a tensor, to be stored in `group.safetensors`."""
    return torch.frombuffer(
        bytearray(json.dumps(value, sort_keys=True).encode()), dtype=torch.uint8
    ).clone()


def unpack(tensor: Tensor) -> Any:
    """Inverse of `pack`."""
    return json.loads(bytes(tensor.numpy().tobytes()).decode() or "[]")


def read_tasks(tensors: Mapping[str, Tensor], stage: str) -> list[str]:
    """The tasks that a stored group was trained on, in the order of the stage."""
    return unpack(tensors["tasks"]) if "tasks" in tensors else [stage]
