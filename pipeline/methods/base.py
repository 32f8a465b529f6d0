"""The contract of a method, and the registry.

A method says how a stage is fitted, which *function* answers for a task, and who answers for an
image (its policy). Data, storage, identification, candidates and evaluation are shared by all.

It has two halves. The one with numbers alone (`fit`, `know`, `function`, `scores`) works without
a backbone; the one with CLIP (`adapter`, `install`, `image_features`, `class_features`) is for
methods that train, in encoders and replicas. A closed form needs the first half only.

Shapes: B batch, L tokens, D width, C classes, F embedding.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods.adapter import Adapter, StageContext
from archipelago.pipeline.methods.view import Function, View
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.records import ClassList, GroupRecord, TaskRecord
from archipelago.pipeline.registry import Registry
from archipelago.pipeline.settings import MethodSettings, Settings
from archipelago.pipeline.strict import Strict

methods: Registry[type[Method]] = Registry("archipelago.pipeline.methods", "method.name")
Policy = Literal["given", "one", "hard", "posterior"]


class MethodOptions(Strict):
    """`method.options` of a method that has no more of its own."""

    learning_rate: float | None = Field(None, gt=0.0)


@dataclass
class Fitted:
    """What fitting a stage found.

    Attributes:
        tensors: weights that were trained; they become `group.safetensors`.
        tasks: per task, fields of its record: `temperature`, `own_CF`, `facts`, `probe`, `outputs`.
        parameters: trained numbers.
        neighbours: groups that are borrowed from: `task`, `distance`, `gain`.
        experts: how tasks use experts.
        facts: for the journal, see `pipeline/training/stage.py`.
        held: per task, rows of the held-out fold (m,) and logits (m, C) that training found there.
        probed: per task, rows of the canary's images.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: int = 0
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    experts: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    held: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    probed: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class StageData:
    """What a method may fit a stage on.

    Attributes:
        stage: its number.
        name: that of its task, or of several.
        tasks: a record of each task with what is known before anything is fitted: statistics of
            its training rows, calibration rows, class features of frozen CLIP.
        train: fits the method's adapter on the stage's images by gradient descent.
        look: compact (n, K) and CLIP features (n, F), and labels (n,), of training rows of a task.
    """

    stage: int
    name: str
    tasks: tuple[TaskRecord, ...]
    train: Callable[[], Fitted]
    look: Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Method(ABC):
    """One way to learn a stream; a file in this folder.

    Attributes:
        name: what `method=` selects.
        Options: type of its `method.options`.
        policy: who answers. `given`: the function of the task that is given. `one`: one function
            for every image. `hard`: that of the likeliest task, frozen CLIP for what is new.
            `posterior`: every task by its probability (method 7.5).
        learns: False if stages leave nothing behind.
        trains: functions have weights, so that images pass through them.
        refines: a stage is fitted twice: `fit` in closed form, then `refine`.
        fuses: images of no learned task get frozen CLIP fused with the likeliest groups.
        borrows: a group may use earlier groups.
        continues: a stage starts from the weights of the one before.
        mixes: what a stage trains alone answers together with what earlier stages left.
        joint: one stage holds all tasks unless `stream.stages` says otherwise.
        alone: each task has a stage of its own, whatever `stream.stages` says.
        several: a stage may hold several tasks.
        dense: it learns dense tasks too.
        holds_out: it needs held-out images, so that one image a class is not enough.
        kappa: weight of CLIP's scores in deciding that an image is new.
        debias: share of the mean image that is taken out of CLIP's scores.
        joint_share: that of joint class scores in a posterior over the classes of several tasks.

    Args:
        settings: of the run.
        basis: of compact features.
        backbone: frozen CLIP; None where numbers are enough.
        scale: `exp(logit_scale)` of the backbone, where none is given.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    policy: Policy = "hard"
    learns: ClassVar[bool] = True
    fuses: ClassVar[bool] = False
    borrows: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    several: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    holds_out: ClassVar[bool] = True
    trains: bool = True
    refines: bool = False
    kappa: float = 0.5
    debias: float = 0.0
    joint_share: float = 0.0

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        self.settings = settings
        self.basis = basis
        self.scale = scale if backbone is None else backbone.logit_scale
        self._backbone = backbone
        self.options: Any = method_options(settings.method)
        self.records: dict[str, TaskRecord] = {}

    @classmethod
    def identifies(cls) -> bool:
        """Whether images must be identified, so that each task leaves its statistics."""
        return cls.policy in ("hard", "posterior")

    @property
    def independent(self) -> bool:
        """Whether what a stage trains needs nothing of other stages: it may train before them."""
        return self.trains and not self.borrows and not self.continues

    # -- numbers alone -----------------------------------------------------------------------

    def fit(self, stage: StageData, earlier: Sequence[GroupRecord]) -> Fitted:
        """Learn a stage; by default its adapter is trained by gradient descent."""
        return stage.train()

    def refine(self, stage: StageData, earlier: Sequence[GroupRecord]) -> Fitted:
        """Fit a stage better than `fit` did, once it answers already; only where `refines`."""
        raise NotImplementedError(f"{self.name} fits a stage once")

    def hold(self, groups: Sequence[GroupRecord]) -> None:
        """Answer with what exactly these stages stored, in their order; called before `know`.

        Only for closed forms whose stages leave numbers of their own in `Fitted.tensors`.
        """
        del groups  # what most stages train runs in the encoders, see `install`

    def know(self, records: Mapping[str, TaskRecord]) -> None:
        """Answer with exactly these records from now on, in the order of learning."""
        self.records = dict(records)

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """What answers for an image of `task` once `learned` are; None = frozen CLIP."""
        return Function(task, task) if task is not None and task in learned else None

    def scores(self, view: View, function: Function, listed: ClassList) -> np.ndarray | None:
        """Log-probabilities (B, C) of a class list under a function; None if it cannot score it.

        By default `softmax(exp(s) <v, u> / T)` with features of the function and its temperature.
        """
        logits = self.scale * view.features(function) @ view.text(listed, function).T
        record = self.records.get(function.task)
        return log_softmax(logits / (record.temperature if record is not None else 1.0))

    def choose(
        self, options: Sequence[str], log_shares_BT: np.ndarray, compact_BK: np.ndarray
    ) -> np.ndarray:
        """Log-shares (B, T) of the learned tasks as this method takes them from an identifier.

        Args:
            options: the T tasks.
            log_shares_BT: what the identifier says.
            compact_BK: compact features of the images.
        """
        return log_shares_BT

    def clip_scores(self, view: View, text_CF: np.ndarray) -> np.ndarray:
        """CLIP's scores (B, C) of classes, `exp(s) <v - delta m_f, u>` (method 7.5)."""
        if not len(text_CF):
            return np.zeros((len(view), 0))
        return self.scale * self.debiased(view.frozen) @ text_CF.astype(np.float64).T

    def outside_scores(
        self, view: View, text_CF: np.ndarray, unlearned_C: np.ndarray
    ) -> np.ndarray:
        """Scores (B, C) of classes by their text, comparable to those of `clip_scores`.

        Args:
            view: of the images.
            text_CF: class features of frozen CLIP.
            unlearned_C: whether nobody learned the class.
        """
        return self.clip_scores(view, text_CF)

    def joint_scores(self, view: View) -> dict[str, np.ndarray] | None:
        """Joint class scores (B, C) by task; None without them. Asked for with `joint_share`."""
        return None

    def debiased(self, frozen_BF: np.ndarray) -> np.ndarray:
        """`v - delta m_f` in double precision; v itself, exactly, where delta is 0."""
        v = frozen_BF.astype(np.float64)
        if self.debias == 0.0 or self.basis is None:
            return v
        return v - self.debias * self.basis.frozen_mean

    def parts(self, view: View, function: Function, listed: ClassList) -> dict[str, np.ndarray]:
        """What the parts of a function say alone, log-probabilities (B, C) by name; for reports."""
        return {}

    def contributions(self, function: Function) -> dict[str, float]:
        """Groups at work in a function and their mean weight: its own, then its neighbours."""
        return {function.task: 1.0}

    # -- with CLIP ---------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
        """Frozen CLIP. Raises RuntimeError for a method that was built for numbers alone."""
        if self._backbone is None:
            raise RuntimeError(f"method {self.name} was built without a backbone")
        return self._backbone

    @property
    def first_blocks(self) -> tuple[int, int]:
        """First block that a stage may change, in the image and in the text encoder.

        By default nothing is changed: all but the last block, whose pooling ends a pass. -1 = what
        comes before the blocks is changed too.
        """
        return self.backbone.image.depth - 1, self.backbone.text.depth - 1

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: `method.options.learning_rate`, else `training.learning_rate`."""
        return float(self.options.learning_rate or self.settings.training.learning_rate)

    def adapter(self, context: StageContext) -> Adapter:
        """What the stage trains; earlier stages are installed already."""
        raise NotImplementedError(f"{self.name} trains nothing")

    def begin(self, adapter: Adapter, objectives: Sequence[Any], world: int) -> None:
        """Before the first step: start an adapter from the stage's images.

        Args:
            adapter: fresh; a resumed stage's weights replace what is set here.
            objectives: the stage's tasks with this worker's rows, see `pipeline/training`.
            world: number of workers.
        """
        del adapter, objectives, world  # most start from a seed alone

    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Make a stored group answer; raises ValueError if it does not fit."""
        if tensors:
            raise ValueError(f"group '{task}' has weights, and {self.name} has no use for any")

    def without(self, tensors: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
        """A stored group as it is when an earlier one is forgotten that it borrows from."""
        return dict(tensors)

    def image_features(self, x_BLD: Tensor, functions: Sequence[Function]) -> Tensor:
        """Normalised features (B, F) from trunk activations, one function per image."""
        raise NotImplementedError(f"{self.name} has no functions with weights")

    def encoder(self, function: Function) -> Callable[[Tensor], Tensor]:
        """`image_features` of one function for batches of any size, ready to be traced."""
        return lambda x_BLD: self.image_features(x_BLD, [function])

    def maps(self, x_BLD: Tensor, function: Function) -> list[Tensor]:
        """Token maps (B, L, D) of one function from trunk activations; only where `dense`."""
        raise NotImplementedError

    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: Function | None
    ) -> Tensor:
        """Class features (C, F) under one function, None = frozen CLIP."""
        return self.backbone.encode_classes(classes, templates)

    def encode_list(self, listed: ClassList, function: Function | None) -> Tensor:
        """Class features (C, F) of names that need not share their templates."""
        parts: dict[tuple[str, ...], list[int]] = {}
        for position, item in enumerate(listed):
            parts.setdefault(item.templates, []).append(position)
        found: list[Tensor] = [torch.empty(0)] * len(listed)
        for templates, positions in parts.items():
            names = [listed[at].name for at in positions]
            features = self.class_features(names, templates, function)
            for at, u_F in zip(positions, features, strict=True):
                found[at] = u_F
        return torch.stack(found)

    def trunk(self, image_BCHW: Tensor, record: Callable | None = None) -> Tensor:
        """Activations (B, L, D) at the first adapted image block: shared by all functions."""
        return self.backbone.image.trunk(image_BCHW, self.first_blocks[0], record)

    def frozen_features(self, x_BLD: Tensor, record: Callable | None = None) -> Tensor:
        """Normalised features of frozen CLIP (B, F) from trunk activations."""
        tower = self.backbone.image
        x_BD = tower.pooled(x_BLD, self.first_blocks[0], record=record)
        return F.normalize(tower.finish(x_BD), dim=-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in double precision."""
    z = logits.astype(np.float64)
    return z - np.logaddexp.reduce(z, axis=-1, keepdims=True)


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method selectable by its name."""
    return methods.register(method.name)(method)


def method_class(name: str) -> type[Method]:
    """Raises UserError with the known names if there is no such method."""
    return methods.get(name)


def method_options(settings: MethodSettings) -> MethodOptions:
    """The options of the method that the settings name.

    Raises:
        UserError: a key that the method does not have, or a value that is none.
    """
    kind = method_class(settings.name).Options
    try:
        return kind.model_validate(settings.options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(["method.options", *(str(part) for part in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise UserError(f"{key}: unknown option of {settings.name}; it has {known}") from None
        raise UserError(f"{key}={problem['input']}: {problem['msg'].lower()}") from None


def build_method(
    settings: Settings,
    basis: Basis | None = None,
    backbone: Backbone | None = None,
    scale: float = 1.0,
) -> Method:
    """The method that the settings name, with nothing learned yet."""
    return method_class(settings.method.name)(settings, basis, backbone, scale)
