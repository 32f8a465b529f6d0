"""The growing model: frozen CLIP and one frozen expert group per stage.

A group's experts may serve several tasks, each with its own routers and embedding. So what a mix
names, and what is called a group below, is a task: routers of its own, experts of its stage.

Shapes: G groups, B batch, K groups in a mix, P (sample, group) pairs, L tokens, D width,
N adapted blocks, F embedding, C classes.

A mixed-task batch is one pass: per block, the experts of each (sample, group) pair are gathered
and applied as one batched product, so its cost does not depend on how many groups were learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.model.backbone import Backbone, class_means
from archipelago.pipeline.model.experts import ExpertGroup, ExpertShape, apply_experts
from archipelago.pipeline.model.mix import Mix, TaskMix, stack_mixes
from archipelago.pipeline.model.towers import Delta


class GrowingModel:
    """Frozen CLIP plus the groups learned so far; adding a group changes no earlier function."""

    def __init__(self, backbone: Backbone, shapes: dict[str, ExpertShape]) -> None:
        self.backbone = backbone
        self.shapes = shapes
        self.index: dict[str, int] = {}
        self.mixes: dict[str, TaskMix] = {}
        self.first = {
            name: shapes[name].first if name in shapes else tower.depth - 1
            for name, tower in (("image", backbone.image), ("text", backbone.text))
        }
        self._owner: list[int] = []  # task -> number of its stage's experts
        self._embedded = False  # whether any task has an embedding
        self._parts: dict[str, dict[str, list[Tensor]]] = {
            name: {"A": [], "B": [], "W": [], "e": []} for name in shapes
        }
        self._stacks: dict[str, dict[str, Tensor]] = {}

    @property
    def tasks(self) -> list[str]:
        """Learned tasks in the order of their groups."""
        return list(self.index)

    def add(self, task: str, group: ExpertGroup, mix: TaskMix) -> None:
        """Append a trained group of one task under a new name.

        Raises:
            ValueError: the name is taken, a shape differs, a tensor is not finite, or the mix
                names a group that does not exist yet.
        """
        self.add_stage({task: mix}, group)

    def add_stage(self, mixes: Mapping[str, TaskMix], group: ExpertGroup) -> None:
        """Append the trained group of a stage, its tasks in the order of their routers.

        Raises:
            ValueError: as `add`.
        """
        for task, mix in mixes.items():
            if task in self.index:
                raise ValueError(f"group '{task}' exists already")
            unknown = [name for name in mix.groups if name != task and name not in self.index]
            if unknown:
                raise ValueError(f"group '{task}' borrows from unknown groups {unknown}")
        named = " and ".join(mixes)
        if len(mixes) != group.tasks:
            raise ValueError(f"group '{named}' has routers of {group.tasks} tasks")
        for name, experts in group.encoders():
            if experts.shape != self.shapes.get(name):
                raise ValueError(f"group '{named}': {name} experts have another shape")
            for key, tensor in experts.named_parameters():
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"group '{named}': {name}.{key} is not finite")
        number = self._owner[-1] + 1 if self._owner else 0
        for name, experts in group.encoders():
            parts = self._parts[name]
            for key in ("A", "B"):
                parts[key].append(self._kept(getattr(experts, key)))
            nothing = experts.A.new_zeros(experts.shape.width)
            for t in range(len(mixes)):
                parts["W"].append(self._kept(experts.W if group.tasks == 1 else experts.W[t]))
                parts["e"].append(self._kept(nothing if experts.e is None else experts.e[t]))
        self._stacks.clear()
        self._embedded |= group.tasks > 1
        for task, mix in mixes.items():
            self.index[task] = len(self.index)
            self.mixes[task] = mix
            self._owner.append(number)

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.backbone.device).clone()

    def _stack(self, encoder: str) -> dict[str, Tensor]:
        if encoder not in self._stacks:
            parts = self._parts[encoder]
            self._stacks[encoder] = {key: torch.stack(parts[key]) for key in parts}
        return self._stacks[encoder]

    def mix(self, tasks: Sequence[str | None]) -> Mix:
        """One mix per sample by task name, None for frozen CLIP; collapses if all are equal."""
        chosen: list[TaskMix | None] = [self.mixes[t] if t is not None else None for t in tasks]
        if len(set(tasks)) == 1:
            chosen = chosen[:1]
        blocks = {name: shape.blocks for name, shape in self.shapes.items()}
        return stack_mixes(chosen, self.index, blocks)

    def delta(self, encoder: str, mix: Mix | None) -> Delta | None:
        """What the mix adds to each block of `encoder`, or None where nothing is added."""
        if mix is None or encoder not in self.shapes or bool((mix.groups < 0).all()):
            return None
        shape, stack, owner = self.shapes[encoder], self._stack(encoder), self._owner
        weights = mix.weights[encoder].to(self.backbone.device)
        if mix.uniform:
            return _uniform(shape, stack, owner, mix.groups[0].tolist(), weights[0])
        return _gathered(shape, stack, owner, mix.groups.to(self.backbone.device), weights)

    def enter(self, encoder: str, x_BLD: Tensor, mix: Mix | None) -> Tensor:
        """`x_t = x + e_t` at the first adapted block, where a task has an embedding (method 3)."""
        e_BD = self._embedding(encoder, mix)
        return x_BLD if e_BD is None else x_BLD + e_BD[:, None]

    def _embedding(self, encoder: str, mix: Mix | None) -> Tensor | None:
        if mix is None or encoder not in self.shapes or not self._embedded:
            return None
        own = mix.groups[:, 0].to(self.backbone.device)  # a task's own group stands first
        return self._stack(encoder)["e"][own.clamp(min=0)] * (own >= 0)[:, None]

    def encode_image(self, images_BCHW: Tensor, mix: Mix | None) -> Tensor:
        """Normalised image features (B, F) under a mix."""
        tower = self.backbone.image
        x_BLD = tower.run(tower.embed(images_BCHW), 0, self.first["image"])
        return self.encode_tokens(x_BLD, mix)

    def encode_tokens(self, x_BLD: Tensor, mix: Mix | None) -> Tensor:
        """The same from trunk activations at the first adapted block, (B, F)."""
        return self.encoder(mix)(x_BLD)

    def encoder(self, mix: Mix | None) -> Callable[[Tensor], Tensor]:
        """`encode_tokens` under one mix, with all that depends on the mix worked out before."""
        tower, first = self.backbone.image, self.first["image"]
        e_BD, delta = self._embedding("image", mix), self.delta("image", mix)

        def encode(x_BLD: Tensor) -> Tensor:
            x_BLD = x_BLD if e_BD is None else x_BLD + e_BD[:, None]
            return F.normalize(tower.finish(tower.pooled(x_BLD, first, delta)), dim=-1)

        return encode

    def token_maps(self, x_BLD: Tensor, mix: Mix | None) -> list[Tensor]:
        """Token maps (B, L, D) of several depths, see `Tower.maps`."""
        x_BLD = self.enter("image", x_BLD, mix)
        return self.backbone.image.maps(x_BLD, self.first["image"], self.delta("image", mix))

    def encode_classes(
        self, classes: Sequence[str], templates: Sequence[str], task: str | None
    ) -> Tensor:
        """Class features (C, F) under the mix of one task, or of frozen CLIP."""
        mix = None if task is None else self.mix([task])
        delta = self.delta("text", mix)
        if not self._embedded:
            return self.backbone.encode_classes(classes, templates, delta)
        tower, first = self.backbone.text, self.first["text"]

        def encode(prompts: list[str]) -> Tensor:
            tokens = self.backbone.tokenize(prompts)
            position = tower.positions(tokens)
            x_CLD = tower.run(tower.embed(tokens), 0, first, None, position)
            x_CD = tower.pooled(self.enter("text", x_CLD, mix), first, delta, position)
            return F.normalize(tower.finish(x_CD), dim=-1)

        return class_means(classes, templates, encode)

    def logits(self, features_BF: Tensor, classes_CF: Tensor) -> Tensor:
        """`exp(logit_scale) <v, u>`, (B, C)."""
        return self.backbone.logit_scale * features_BF @ classes_CF.T


def _uniform(
    shape: ExpertShape,
    stack: dict[str, Tensor],
    owner: list[int],
    groups: list[int],
    w_KN: Tensor,
) -> Delta:
    def delta(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor | None:
        i = block - shape.first
        if i < 0:
            return None
        total = None
        for k, g in enumerate(groups):
            if g < 0:
                continue
            A, B = (stack[key][owner[g], i] for key in ("A", "B"))
            y = apply_experts(shape, A, B, stack["W"][g, i], h_BLD, q_BD)
            y = y * w_KN[k, i]
            total = y if total is None else total + y
        return total

    return delta


def _gathered(
    shape: ExpertShape, stack: dict[str, Tensor], owner: list[int], g_BK: Tensor, w_BKN: Tensor
) -> Delta:
    sample_P, k_P = (g_BK >= 0).nonzero(as_tuple=True)
    group_P = g_BK[sample_P, k_P]
    owner_P = torch.tensor(owner, device=g_BK.device)[group_P]
    w_PN = w_BKN[sample_P, k_P]
    alone = g_BK.shape[1] == 1 and len(sample_P) == len(g_BK)

    def delta(block: int, h_BLD: Tensor, q_BD: Tensor) -> Tensor | None:
        i = block - shape.first
        if i < 0:
            return None
        A, B = (stack[key][owner_P, i] for key in ("A", "B"))
        W = stack["W"][group_P, i]
        h, q = (h_BLD, q_BD) if alone else (h_BLD[sample_P], q_BD[sample_P])
        y_PLD = apply_experts(shape, A, B, W, h, q) * w_PN[:, i, None, None]
        if alone:
            return y_PLD
        return torch.zeros_like(h_BLD).index_add(0, sample_P, y_PLD.to(h_BLD.dtype))

    return delta
