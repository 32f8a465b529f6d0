"""TRGE: one expert group per stage, frozen for ever; neighbours help; unseen images are fused.

`y = y_t + sum_j a_{t,j,l} exp(-d(t,j)/T) y_j` with `a = 0` at start (method 2.6): a neighbour's
influence is learned together with the group and frozen with it, so a learned task's function
never changes again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.methods.adapter import (
    Adapter,
    Neighbour,
    StageContext,
    pack,
    read_tasks,
    unpack,
)
from archipelago.pipeline.methods.base import Method, register
from archipelago.pipeline.methods.view import Function
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import ExpertGroup, Experts, expert_shapes, trunk_blocks
from archipelago.pipeline.model.growing import GrowingModel
from archipelago.pipeline.model.mix import TaskMix
from archipelago.pipeline.model.towers import Delta
from archipelago.pipeline.settings import Settings


class Lender(NamedTuple):
    """Frozen experts of one encoder and the number of the task whose routers are used."""

    experts: Experts
    number: int


class GroupAdapter(Adapter):
    """A new expert group with learned weights for its neighbours' frozen groups."""

    def __init__(
        self,
        backbone: Backbone,
        group: ExpertGroup,
        first_blocks: tuple[int, int],
        task: str = "",
        neighbours: Sequence[Neighbour] = (),
        frozen: Sequence[Mapping[str, Lender]] = (),
        temperature: float = 1.0,
        rule: str = "residual",
        tasks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.group = group
        self.tasks = list(tasks)
        self.task = task
        self.neighbours = list(neighbours)
        self.rule = rule
        self.temperature = temperature
        self._frozen = [dict(experts) for experts in frozen]  # not registered: never trained
        self._backbone = (backbone,)  # a tuple hides the frozen model from state_dict
        self.first = dict(zip(("image", "text"), first_blocks, strict=True))
        self._silent: frozenset[str] = frozenset()
        self.influence = nn.ParameterDict()
        if rule == "residual" and self.neighbours:
            for name, experts in group.encoders():
                self.influence[name] = nn.Parameter(
                    torch.zeros(len(self.neighbours), experts.shape.blocks)
                )

    def weights(self, encoder: str, blocks: int) -> Tensor:
        """(K, N): own group first, then the neighbours; silent ones weigh nothing."""
        distances = torch.tensor([0.0] + [n.distance for n in self.neighbours])
        if self.rule == "softmax":
            silent = torch.tensor([False] + [n.task in self._silent for n in self.neighbours])
            shares = (-distances / self.temperature).masked_fill(silent, -torch.inf).softmax(dim=0)
            return shares[:, None].expand(-1, blocks)
        own = torch.ones(1, blocks)
        if not self.neighbours:
            return own
        influence = self.influence[encoder]
        decay = torch.exp(-distances[1:] / self.temperature)[:, None].to(influence.device)
        return torch.cat([own.to(influence.device), influence * decay])

    def _delta(self, encoder: str, own: Experts, task: int | Tensor) -> Delta:
        weights = self.weights(encoder, own.shape.blocks)
        if self.watch is not None:
            self.watch.enter(encoder, task)

        def delta(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor | None:
            y = own(block, h_BLD, q_BD, task, self.watch)
            if y is None:
                return None
            i = block - own.shape.first
            total = y * weights[0, i]
            for k, experts in enumerate(self._frozen, start=1):
                if self.neighbours[k - 1].task in self._silent:
                    continue
                lender, number = experts[encoder]
                helped = lender(block, h_BLD, q_BD, number)
                assert helped is not None
                total = total + helped * weights[k, i]
            return total

        return delta

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features through the new group and its neighbours."""
        tower, own = self._backbone[0].image, self.group.image
        delta = None
        if own is not None:
            x_BLD, delta = own.enter(x_BLD, task), self._delta("image", own, task)
        x_BD = tower.pooled(x_BLD, self.first["image"], delta)
        return F.normalize(tower.finish(x_BD), dim=-1)

    def maps(self, x_BLD: Tensor, task: int | Tensor = 0) -> list[Tensor]:
        """Token maps of several depths through the new group and its neighbours."""
        tower, own = self._backbone[0].image, self.group.image
        delta = None
        if own is not None:
            x_BLD, delta = own.enter(x_BLD, task), self._delta("image", own, task)
        return tower.maps(x_BLD, self.first["image"], delta)

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Caption features; frozen ones if the group has no text experts."""
        tower, own = self._backbone[0].text, self.group.text
        delta = None
        if own is not None:
            x_CLD, delta = own.enter(x_CLD, task), self._delta("text", own, task)
        x_CD = tower.pooled(x_CLD, self.first["text"], delta, position_C)
        return F.normalize(tower.finish(x_CD), dim=-1)

    def rest_text(self) -> None:
        """Text experts, and the weights of the neighbours' ones, stay as they are."""
        if self.group.text is not None:
            self.group.text.requires_grad_(False)
        if "text" in self.influence:
            self.influence["text"].requires_grad_(False)

    def borrowed(self) -> list[dict[str, Any]]:
        """The neighbours that are mixed in."""
        return [{"task": n.task, "distance": n.distance} for n in self.neighbours]

    def optional_neighbours(self) -> list[str]:
        """All neighbours: each must prove itself on the held-out fold."""
        return [n.task for n in self.neighbours]

    @contextmanager
    def without(self, tasks: Sequence[str]) -> Iterator[None]:
        """Leave some neighbours out for a moment."""
        before, self._silent = self._silent, frozenset(tasks)
        try:
            yield
        finally:
            self._silent = before

    def keep_neighbours(self, tasks: Sequence[str]) -> None:
        """Drop the other neighbours together with their weights."""
        kept = [i for i, n in enumerate(self.neighbours) if n.task in tasks]
        self.neighbours = [self.neighbours[i] for i in kept]
        self._frozen = [self._frozen[i] for i in kept]
        for name in list(self.influence):
            self.influence[name] = nn.Parameter(self.influence[name].detach()[kept].clone())

    def export(self) -> dict[str, Tensor]:
        """Experts, routers, mixing weights, and the neighbours' names and distances."""
        tensors = {}
        for name, experts in self.group.encoders():
            for key, tensor in experts.named_parameters():
                tensors[f"{name}.{key}"] = tensor.detach().cpu().contiguous()
            mix = self.weights(name, experts.shape.blocks)
            tensors[f"{name}.mix"] = mix.detach().cpu().contiguous()
        tensors["neighbours"] = pack(self.borrowed())
        if len(self.tasks) > 1:
            tensors["tasks"] = pack(self.tasks)
        return tensors


def read_neighbours(tensors: Mapping[str, Tensor]) -> list[Neighbour]:
    """The neighbours that a stored group borrows from."""
    listed = unpack(tensors["neighbours"])
    return [Neighbour(item["distance"], item["task"]) for item in listed]


@register
class Trge(Method):
    """Two-level routing grouped mixture of experts (arXiv 2508.07738)."""

    name = "trge"
    fuses = True
    borrows = True

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(settings, basis, backbone, scale)
        self.groups: dict[str, ExpertGroup] = {}
        self.lenders: dict[str, dict[str, Lender]] = {}
        if backbone is not None:
            self.shapes = expert_shapes(backbone, settings.experts)
            self.model = GrowingModel(backbone, self.shapes)

    @property
    def first_blocks(self) -> tuple[int, int]:
        """From `experts.first_block`."""
        return trunk_blocks(self.backbone, self.settings.experts)

    def adapter(self, context: StageContext) -> GroupAdapter:
        """A fresh group, its initialisation fixed by (seed, task)."""
        rule = self.settings.method.neighbours
        seed = zlib.crc32(f"{self.settings.seed}:{context.task}".encode())
        neighbours = context.neighbours if self.borrows else ()
        adapter = GroupAdapter(
            self.backbone,
            ExpertGroup(self.shapes, seed, max(1, len(context.tasks))),
            self.first_blocks,
            context.task,
            neighbours,
            [self.lenders[n.task] for n in neighbours],
            rule.temperature,
            rule.mix,
            context.tasks,
        )
        return adapter.to(self.backbone.device)  # with the neighbours' weights

    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a stored group to the growing model."""
        tasks = read_tasks(tensors, task)
        group = ExpertGroup(self.shapes, tasks=len(tasks))
        experts = {k: v for k, v in tensors.items() if k.split(".")[-1] in ("A", "B", "W", "e")}
        try:
            group.load_state_dict(experts, strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"group '{task}' does not fit: {str(error).splitlines()[-1]}"
            ) from error
        group.requires_grad_(False).to(self.backbone.device)
        lenders = [n.task for n in read_neighbours(tensors)]
        weights = {name: tensors[f"{name}.mix"].float() for name in self.shapes}
        mixes = {name: TaskMix((name, *lenders), weights) for name in tasks}
        self.model.add_stage(mixes, group)
        self.groups[task] = group
        for number, name in enumerate(tasks):
            self.lenders[name] = {e: Lender(x, number) for e, x in group.encoders()}

    def without(self, tensors: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
        """Drop a neighbour's row of the mix; shares of the `softmax` rule sum to 1 again."""
        neighbours = read_neighbours(tensors)
        kept = [0, *(i for i, n in enumerate(neighbours, start=1) if n.task != task)]
        changed = dict(tensors)
        for name in self.shapes:
            mix = tensors[f"{name}.mix"][kept]
            if self.settings.method.neighbours.mix == "softmax":
                mix = mix / mix.sum(dim=0, keepdim=True)
            changed[f"{name}.mix"] = mix
        listed = [{"task": n.task, "distance": n.distance} for n in neighbours if n.task != task]
        changed["neighbours"] = pack(listed)
        return changed

    def contributions(self, function: Function) -> dict[str, float]:
        """Own group and neighbours with their weights, mean over the blocks of an encoder."""
        mix = self.model.mixes[function.task]
        means = next(iter(mix.weights.values())).mean(dim=1).tolist()
        return dict(zip(mix.groups, means, strict=True))

    def image_features(self, x_BLD: Tensor, functions: Sequence[Function]) -> Tensor:
        """One pass over a mixed-task batch."""
        return self.model.encode_tokens(x_BLD, self.model.mix([f.task for f in functions]))

    def encoder(self, function: Function) -> Callable[[Tensor], Tensor]:
        """The same of one task, its mix worked out before."""
        return self.model.encoder(self.model.mix([function.task]))

    def maps(self, x_BLD: Tensor, function: Function) -> list[Tensor]:
        """Token maps of one task."""
        return self.model.token_maps(x_BLD, self.model.mix([function.task]))

    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: Function | None
    ) -> Tensor:
        """Class features under the mix of one task."""
        task = None if function is None else function.task
        return self.model.encode_classes(classes, templates, task)
