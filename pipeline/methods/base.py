"""The contract of a method, and the registry.

A method says what a stage trains (an `Adapter`), and what answers at test time: each stage leaves a
*function*, named by its task; `None` names frozen CLIP. Everything else - data, optimisation,
storage, identification, evaluation - is shared by all methods.

Shapes: B batch, L tokens, D width, C classes, F embedding.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.backbone import Backbone
from pipeline.model.watch import Watch
from pipeline.settings import Settings

_METHODS: dict[str, type[Method]] = {}


@dataclass(frozen=True, order=True)
class Neighbour:
    """An earlier task that may help a new one, `distance` apart; ordered by distance."""

    distance: float
    task: str


@dataclass(frozen=True)
class StageContext:
    """What is known when a stage starts: its number, its name, its nearest earlier tasks.

    `task` is the name of the stage: that of its task, or of several; `tasks` holds their names.
    """

    stage: int
    task: str
    neighbours: tuple[Neighbour, ...] = ()
    tasks: tuple[str, ...] = ()


class Adapter(nn.Module, ABC):
    """The trainable part of one stage, from the trunk's activations to features.

    Attributes:
        watch: looks on while a training pass runs, None otherwise.
        heads: parameters of dense tasks' own, by number; only in a stage that has such tasks.
        log_variance: (T,) learned weights of the losses of a stage's tasks; only where wanted.
    """

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

    def forward(self, compute: Callable[[Adapter], Any]) -> Any:
        """`compute(self)`: one pass, whatever it holds, as data-parallel training needs it."""
        return compute(self)


class Method(ABC):
    """One way to learn a stream; a file in this folder.

    Attributes:
        name: what `method=` selects.
        trains: False if stages are not trained at all.
        given_id: True if the task's identity is given at test time (an upper bound).
        fuses: True if images of no learned task get frozen CLIP fused with the likeliest groups.
        borrows: True if a group may use earlier groups.
        identifies: True if images must be identified, so that each task needs a signature.
        joint: True if one stage holds all tasks unless `stream.stages` says otherwise.
        alone: True if each task has a stage of its own, whatever `stream.stages` says.
        dense: True if it learns dense tasks too.
    """

    name: ClassVar[str]
    trains: ClassVar[bool] = True
    given_id: ClassVar[bool] = False
    fuses: ClassVar[bool] = False
    borrows: ClassVar[bool] = False
    identifies: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    dense: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, settings: Settings) -> None:
        self.backbone = backbone
        self.settings = settings

    @property
    @abstractmethod
    def first_blocks(self) -> tuple[int, int]:
        """First block that a stage may change, in the image and in the text encoder."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: `method.options.learning_rate`, else `training.learning_rate`."""
        value = self.settings.method.options.get("learning_rate")
        return float(value or self.settings.training.learning_rate)

    @abstractmethod
    def adapter(self, context: StageContext) -> Adapter:
        """What the stage trains; earlier stages are installed already."""

    @abstractmethod
    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Make a stored group answer; raises ValueError if it does not fit."""

    def without(self, tensors: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
        """A stored group as it is when an earlier one is forgotten that it borrows from."""
        return dict(tensors)

    @classmethod
    def function(cls, task: str | None, learned: Sequence[str]) -> str | None:
        """Which stored function answers for an image of `task` after `learned` stages."""
        return task if task in learned else None

    @abstractmethod
    def image_features(self, x_BLD: Tensor, functions: Sequence[str | None]) -> Tensor:
        """Normalised features (B, F) from trunk activations, one function per image."""

    def maps(self, x_BLD: Tensor, function: str) -> list[Tensor]:
        """Token maps (B, L, D) of one function from trunk activations; only where `dense`."""
        raise NotImplementedError

    @abstractmethod
    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: str | None
    ) -> Tensor:
        """Class features (C, F) under one function."""

    def contributions(self, function: str) -> dict[str, float]:
        """Groups at work in a function and their mean weight: its own, then its neighbours."""
        return {function: 1.0}

    def trunk(self, image_BCHW: Tensor, record: Callable | None = None) -> Tensor:
        """Activations (B, L, D) at the first adapted image block: shared by all functions."""
        tower = self.backbone.image
        return tower.run(tower.embed(image_BCHW), 0, self.first_blocks[0], record=record)

    def frozen_features(self, x_BLD: Tensor, record: Callable | None = None) -> Tensor:
        """Normalised features of frozen CLIP (B, F) from trunk activations."""
        tower = self.backbone.image
        x_BD = tower.pooled(x_BLD, self.first_blocks[0], record=record)
        return F.normalize(tower.finish(x_BD), dim=-1)


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


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method selectable by its name."""
    _METHODS[method.name] = method
    return method


def methods() -> dict[str, type[Method]]:
    """All methods by name; every module in this folder is imported once."""
    package = importlib.import_module("pipeline.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"pipeline.methods.{module.name}")
    return dict(sorted(_METHODS.items()))


def method_class(name: str) -> type[Method]:
    """Raises UserError with the known names if there is no such method."""
    known = methods()
    if name not in known:
        raise UserError(f"method.name: '{name}' is unknown; choose one of {', '.join(known)}")
    return known[name]


def build_method(backbone: Backbone, settings: Settings) -> Method:
    """The method that the settings name, with nothing learned yet."""
    return method_class(settings.method.name)(backbone, settings)
