"""What one task of a stage asks of the adapter: rows, a prediction, a loss, a judgement.

Several tasks of a stage train one group together. The images of all tasks that need only pooled
features run as one batch, each under its task's routers and embedding.

Shapes: B batch of a task, L tokens, D width, C classes, F embedding, T tasks of the stage.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.methods import Adapter
from archipelago.pipeline.model.backbone import PROMPTS, Backbone
from archipelago.pipeline.training.trunk import TrunkCache, gather

EVALUATION_BATCH = 128
PROMPT_BYTES = 2**30  # of prompt activations that a task keeps


class Judgement(NamedTuple):
    """How well a task does on its held-out fold: `score` in [0, 1], the larger the better."""

    score: float
    loss: float


class Objective(ABC):
    """One task of a stage, as the training loop sees it.

    Attributes:
        name: the task.
        trunk: activations of this rank's rows.
        pooled: True if the task reads the pooled feature, False if it reads token maps.
        scored: whether `judge` gives a score besides the loss.
    """

    scored: ClassVar[bool] = True
    name: str
    trunk: TrunkCache
    pooled: bool = True

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of this rank."""

    def head(self) -> nn.Module | None:
        """Parameters of this task's own that train with the group and are stored with it."""
        return None

    def inputs(self, chosen: np.ndarray) -> Tensor:
        """Activations (B, L, D) of (position, epoch) pairs (B, 2)."""
        return gather(self.trunk, chosen)

    @abstractmethod
    def predict(self, adapter: Adapter, seen: Any, task: int, step: int) -> Tensor:
        """A prediction from what the image encoder gave: pooled features (B, F), or token maps."""

    @abstractmethod
    def loss(self, prediction: Tensor, chosen: np.ndarray, smoothing: float) -> Tensor:
        """Mean loss of (position, epoch) pairs (B, 2) of this rank's rows."""

    @abstractmethod
    def judge(self, adapter: Adapter, task: int, rank: int = 0, world: int = 1) -> Judgement:
        """Score and mean loss on the held-out fold; ranks share the work."""


class Asked(NamedTuple):
    """Classes (N,) of a step, ascending, and the logarithm of how many each stands for (N,)."""

    classes: np.ndarray
    weights: np.ndarray


def asked_classes(labels: np.ndarray, count: int, wanted: int, chosen: np.ndarray) -> Asked | None:
    """Which classes a step asks for: its batch's, and others drawn evenly; None = all.

    A drawn class stands for its share of those that were left out, so that the sum over classes is
    right on average.

    Args:
        labels: of the batch (B,).
        count: classes of the task.
        wanted: classes to ask for; 0 = all. One more than the batch has at least.
        chosen: (position, epoch) pairs (B, 2) of the batch, which seed the draw.
    """
    if not 0 < wanted < count:
        return None
    own = np.unique(labels)
    others = np.setdiff1d(np.arange(count), own)
    if not len(others):
        return None
    drawn = min(len(others), max(1, wanted - len(own)))
    random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(chosen).tobytes()))
    classes = np.concatenate([own, random.choice(others, drawn, replace=False)])
    weights = np.zeros(len(classes))
    weights[len(own) :] = np.log(len(others) / drawn)
    order = np.argsort(classes)
    return Asked(classes[order], weights[order])


@dataclass
class Classification(Objective):
    """Cross-entropy over a task's classes, whose features come from the text encoder (method 2.9).

    Attributes:
        trunk: activations of the rank's training rows.
        labels: labels of these rows (n,).
        held_x: activations of the held-out fold (m, L, D), sliced.
        held_y: its labels (m,).
        text: per template the prompts' activations (C, L, D) at the first adapted text block,
            and the routing position (C,).
        backbone: gives the temperature of the logits.
        name: the task.
        negatives: classes that a step asks for, those of its batch among them; 0 = all. Each drawn
            one stands for its share of those that were not, so that the expected sum over classes
            is that of all.
    """

    trunk: TrunkCache
    labels: Tensor
    held_x: Tensor | TrunkCache
    held_y: Tensor
    text: Sequence[tuple[Tensor, Tensor]]
    backbone: Backbone
    name: str = ""
    negatives: int = 0
    pooled: bool = field(default=True, init=False)
    _chosen: np.ndarray | None = field(default=None, init=False)
    _asked: Asked | None = field(default=None, init=False)
    _frozen: dict[int, Tensor] = field(default_factory=dict, init=False)

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return len(self.labels)

    def inputs(self, chosen: np.ndarray) -> Tensor:
        """See `Objective.inputs`."""
        self._chosen = chosen
        return super().inputs(chosen)

    def predict(self, adapter: Adapter, seen: Any, task: int, step: int) -> Tensor:
        """Cosines (B, C) with the class features of one template, in full precision whatever the
        step's: in half of it a logit would be off by more than a tenth."""
        u_CF = self._features(adapter, task, step % len(self.text))
        with torch.autocast(seen.device.type, enabled=False):
            return seen.float() @ u_CF.float().T

    def _features(self, adapter: Adapter, task: int, number: int) -> Tensor:
        """Class features (C, F); those that nothing trains are computed once."""
        self._asked = None
        if number in self._frozen:
            return self._frozen[number]
        x_CLD, position_C = self.text[number]
        if adapter.reads_names and self._chosen is not None:
            labels = self.labels[self._chosen[:, 0]].numpy()
            self._asked = asked_classes(labels, len(x_CLD), self.negatives, self._chosen)
        if self._asked is not None:
            at = torch.from_numpy(self._asked.classes).to(x_CLD.device)
            u_CF = adapter.text(x_CLD[at], position_C[at], task)
            if u_CF.requires_grad:
                return u_CF
            self._asked = None
        u_CF = adapter.text(x_CLD, position_C, task)
        if not u_CF.requires_grad:
            self._frozen[number] = u_CF
        return u_CF

    def loss(self, prediction: Tensor, chosen: np.ndarray, smoothing: float) -> Tensor:
        """Cross-entropy of `exp(logit_scale) <v, u>`, over the classes that were asked for."""
        y_B = self.labels[chosen[:, 0]]
        logits = self.backbone.logit_scale * prediction.float()
        if self._asked is not None:
            y_B = torch.from_numpy(np.searchsorted(self._asked.classes, y_B.numpy()))
            logits = logits + torch.from_numpy(self._asked.weights).to(logits)
        y_B = y_B.to(self.backbone.device)
        return F.cross_entropy(logits, y_B, label_smoothing=smoothing)

    @torch.no_grad()
    def judge(self, adapter: Adapter, task: int, rank: int = 0, world: int = 1) -> Judgement:
        """Accuracy (fraction) and mean cross-entropy on the held-out fold."""
        backbone = self.backbone
        sums = torch.zeros(3, dtype=torch.float64, device=backbone.device)
        with backbone.kernels.exact():
            u_CF = class_features(adapter, self.text, task)
            for start in range(rank * EVALUATION_BATCH, len(self.held_y), world * EVALUATION_BATCH):
                stop = start + EVALUATION_BATCH
                y = self.held_y[start:stop].to(backbone.device)
                x = self.held_x[start:stop].to(backbone.device, torch.float32)
                logits = backbone.logit_scale * adapter.image(x, task) @ u_CF.T
                sums[0] += (logits.argmax(dim=1) == y).sum()
                sums[1] += F.cross_entropy(logits, y, reduction="sum")
                sums[2] += len(y)
        if world > 1:
            dist.all_reduce(sums)
        return Judgement(float(sums[0] / sums[2]), float(sums[1] / sums[2]))


def class_features(
    adapter: Adapter, text: Sequence[tuple[Tensor, Tensor]], task: int = 0
) -> Tensor:
    """(C, F): normalised mean over templates."""
    features = [adapter.text(x, position, task) for x, position in text]
    return F.normalize(torch.stack(features).mean(dim=0), dim=-1)


class Prompts(Sequence[tuple[Tensor, Tensor]]):
    """Prompt activations at the first adapted text block: for each template those of all classes
    (C, L, D), and the routing positions (C,). They are kept while they fit the budget.

    Args:
        backbone: frozen CLIP.
        first: first adapted text block.
        classes: names.
        templates: with a place for the name.
        budget: bytes.
    """

    def __init__(
        self,
        backbone: Backbone,
        first: int,
        classes: Sequence[str],
        templates: Sequence[str],
        budget: int = PROMPT_BYTES,
    ) -> None:
        self._backbone, self._first = backbone, first
        self._classes, self._templates = list(classes), list(templates)
        self._left = budget
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._templates)

    def __getitem__(self, number: Any) -> Any:
        """Activations and positions of one template."""
        at = range(len(self))[number]
        if at in self._kept:
            return self._kept[at]
        found = self._compute(self._templates[at])
        if found[0].nbytes <= self._left:
            self._left -= found[0].nbytes
            self._kept[at] = found
        return found

    @torch.no_grad()
    def _compute(self, template: str) -> tuple[Tensor, Tensor]:
        backbone, tower = self._backbone, self._backbone.text
        tokens = backbone.tokenize([template.format(name) for name in self._classes])
        with backbone.kernels.exact():
            parts = [tower.trunk(part, self._first) for part in tokens.split(PROMPTS)]
        return torch.cat(parts), tower.positions(tokens)


def judge(
    adapter: Adapter, objectives: Sequence[Objective], rank: int = 0, world: int = 1
) -> Judgement:
    """Mean score and mean loss over the tasks of a stage, each on its held-out fold."""
    found = [task.judge(adapter, number, rank, world) for number, task in enumerate(objectives)]
    return Judgement(*(float(np.mean(values)) for values in zip(*found, strict=True)))


def predict_all(
    adapter: Adapter, objectives: Sequence[Objective], inputs: Sequence[Tensor], step: int
) -> list[Any]:
    """Predictions of all tasks: one pass through the image encoder for those that read pooled
    features, one for those that read token maps, each split by task."""
    seen: dict[int, Any] = {}
    for pooled in (True, False):
        numbers = [number for number, task in enumerate(objectives) if task.pooled is pooled]
        if not numbers:
            continue
        encode = adapter.image if pooled else adapter.maps
        if len(objectives) == 1:
            seen[0] = encode(inputs[0])
            continue
        sizes = [len(inputs[number]) for number in numbers]
        x_BLD = torch.cat([inputs[number] for number in numbers])
        whose = torch.tensor(numbers).repeat_interleave(torch.tensor(sizes)).to(x_BLD.device)
        if pooled:
            seen |= dict(zip(numbers, adapter.image(x_BLD, whose).split(sizes), strict=True))
        else:
            parts = [depth.split(sizes) for depth in adapter.maps(x_BLD, whose)]
            seen |= dict(zip(numbers, map(list, zip(*parts, strict=True)), strict=True))
    return [
        task.predict(adapter, seen[number], number, step) for number, task in enumerate(objectives)
    ]
