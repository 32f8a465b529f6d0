"""Continual fine-tuning: the same blocks, all their weights, one task after another.

The reference for forgetting: each stage starts from the last one's weights and the newest weights
answer for every task. It trains from the same first block, for the same steps, as the groups do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.closedform import Basis
from pipeline.methods.adapter import Adapter, StageContext, pack, read_tasks
from pipeline.methods.base import Method, register
from pipeline.methods.view import Function
from pipeline.model.backbone import Backbone
from pipeline.model.experts import trunk_blocks
from pipeline.model.towers import ImageTower, TextTower
from pipeline.settings import Settings


class TunedTowers(Adapter):
    """Both encoders with trainable copies of their upper blocks and heads."""

    def __init__(self, backbone: Backbone, first_blocks: tuple[int, int]) -> None:
        super().__init__()
        self.first_image, self.first_text = first_blocks
        towers: list[Any] = []
        names, tensors = [], []
        for side, frozen, first in (
            ("image", backbone.image, first_blocks[0]),
            ("text", backbone.text, first_blocks[1]),
        ):
            wanted = {id(p) for block in frozen.blocks[first:] for p in block.parameters()}
            wanted |= {id(p) for p in frozen.head()}
            shared = {id(p): p for p in frozen.parameters() if id(p) not in wanted}
            tower = copy.deepcopy(frozen, dict(shared))  # the trunk is not copied for each stage
            for name, parameter in tower.named_parameters():
                if id(parameter) not in shared:
                    names.append(f"{side}.{name}")
                    tensors.append(parameter.requires_grad_(True))
            towers.append(tower)
        self._towers: tuple[ImageTower, TextTower] = (towers[0], towers[1])
        self.names = names
        self.tasks: list[str] = []
        self.tuned = nn.ParameterList(tensors)

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features through the tuned blocks, the same for every task."""
        tower = self._towers[0]
        x_BD = tower.pooled(x_BLD, self.first_image)
        return F.normalize(tower.finish(x_BD).float(), dim=-1)

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Caption features through the tuned blocks."""
        tower = self._towers[1]
        x_CD = tower.pooled(x_CLD, self.first_text, None, position_C)
        return F.normalize(tower.finish(x_CD).float(), dim=-1)

    def export(self) -> dict[str, Tensor]:
        """All tuned weights by name."""
        pairs = zip(self.names, self.tuned, strict=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in pairs}
        if len(self.tasks) > 1:
            tensors["tasks"] = pack(self.tasks)
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored weights; raises ValueError if they do not fit."""
        if set(tensors) - {"tasks"} != set(self.names):
            odd = sorted((set(tensors) - {"tasks"}) ^ set(self.names))[0]
            raise ValueError(f"tuned weights do not fit: '{odd}'")
        for name, tensor in zip(self.names, self.tuned, strict=True):
            tensor.data.copy_(tensors[name])


@register
class Finetune(Method):
    """Sequential fine-tuning of everything above the trunk."""

    name = "finetune"
    policy = "one"
    continues = True

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(settings, basis, backbone, scale)
        self.stages: dict[str, TunedTowers] = {}

    @property
    def first_blocks(self) -> tuple[int, int]:
        """The same trunk as the groups', so that both train at the same cost."""
        return trunk_blocks(self.backbone, self.settings.experts)

    def _fresh(self) -> TunedTowers:
        return TunedTowers(self.backbone, self.first_blocks).to(self.backbone.device)

    def adapter(self, context: StageContext) -> TunedTowers:
        """The last stage's weights, ready to be changed."""
        adapter = self._fresh()
        if self.stages:
            adapter.load(list(self.stages.values())[-1].export())
        adapter.tasks = list(context.tasks)
        return adapter

    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights of one finished stage."""
        adapter = self._fresh()
        adapter.load(tensors)
        for name in read_tasks(tensors, task):
            self.stages[name] = adapter.requires_grad_(False)

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The newest weights, whatever the image."""
        return Function(learned[-1], learned[-1]) if learned else None

    def image_features(self, x_BLD: Tensor, functions: Sequence[Function]) -> Tensor:
        """Features of one stage's weights; all images of a batch must name the same stage."""
        (function,) = set(functions)
        return self.stages[function.task].image(x_BLD)

    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: Function | None
    ) -> Tensor:
        """Class features of one stage's weights."""
        if function is None:
            return self.backbone.encode_classes(classes, templates)
        prompts = [template.format(name) for name in classes for template in templates]
        tokens = self.backbone.tokenize(prompts)
        tower = self.backbone.text
        position = tower.positions(tokens)
        x_CLD = tower.run(tower.embed(tokens), 0, self.first_blocks[1], None, position)
        features = self.stages[function.task].text(x_CLD, position)
        return F.normalize(features.view(len(classes), len(templates), -1).mean(dim=1), dim=-1)
