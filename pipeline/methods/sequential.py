"""What methods share that go on with the weights of the stage before: the newest ones answer.

Shapes: B batch, L tokens, D width, C classes, F embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.methods.adapter import Adapter, StageContext, read_tasks
from archipelago.pipeline.methods.base import Method, Policy
from archipelago.pipeline.methods.view import Function
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import trunk_blocks
from archipelago.pipeline.settings import Settings


class Continuing(Adapter):
    """An adapter that can take over what an earlier stage left.

    Attributes:
        tasks: of the stage, in its order.
        first_image, first_text: first adapted block of each encoder.
    """

    def __init__(self, backbone: Backbone, first_blocks: tuple[int, int]) -> None:
        super().__init__()
        self._backbone = (backbone,)  # a tuple hides the frozen model from state_dict
        self.first_image, self.first_text = first_blocks
        self.tasks: list[str] = []

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored weights; raises ValueError if they do not fit."""

    def begin_stage(self, context: StageContext) -> None:
        """From what the last stage left to the start of a new one."""
        self.tasks = list(context.tasks)

    def number(self, task: str) -> int:
        """The number under which a task is known to `image` and `text`."""
        return 0


class Sequential(Method):
    """Stage after stage on the same weights; one function for every image.

    A subclass may leave `continues` off, so that each stage starts from frozen CLIP.
    """

    policy: Policy = "one"
    continues = True

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(settings, basis, backbone, scale)
        self.stages: dict[str, Continuing] = {}

    @property
    def first_blocks(self) -> tuple[int, int]:
        """The same trunk as the groups', so that all train at the same cost."""
        return trunk_blocks(self.backbone, self.settings.experts)

    @abstractmethod
    def fresh(self, context: StageContext) -> Continuing:
        """An adapter as before any stage, its initialisation fixed by (seed, task)."""

    def adapter(self, context: StageContext) -> Continuing:
        """The last stage's weights, ready to be changed."""
        adapter = self.fresh(context).to(self.backbone.device)
        if self.continues and self.stages:
            adapter.load(list(self.stages.values())[-1].export())
        adapter.begin_stage(context)
        return adapter.to(self.backbone.device)

    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights of one finished stage."""
        tasks = read_tasks(tensors, task)
        adapter = self.fresh(StageContext(0, task, (), tuple(tasks)))
        adapter.load(tensors)
        adapter.to(self.backbone.device).requires_grad_(False)
        for name in tasks:
            self.stages[name] = adapter

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The newest weights, whatever the image."""
        return Function(learned[-1], learned[-1]) if learned else None

    def _at(self, function: Function) -> tuple[Continuing, int]:
        assert function.weights is not None
        adapter = self.stages[function.weights]
        return adapter, adapter.number(function.task)

    def image_features(self, x_BLD: Tensor, functions: Sequence[Function]) -> Tensor:
        """Each image under its own function, one pass for each function."""
        known = list(dict.fromkeys(functions))
        if len(known) == 1:
            adapter, number = self._at(known[0])
            return adapter.image(x_BLD, number)
        found: list[Tensor] = [torch.empty(0)] * len(functions)
        for function in known:
            rows = [row for row, other in enumerate(functions) if other == function]
            adapter, number = self._at(function)
            features = adapter.image(x_BLD[torch.tensor(rows, device=x_BLD.device)], number)
            for row, v_F in zip(rows, features, strict=True):
                found[row] = v_F
        return torch.stack(found)

    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: Function | None
    ) -> Tensor:
        """Class features of one stage's weights."""
        if function is None:
            return self.backbone.encode_classes(classes, templates)
        prompts = [template.format(name) for name in classes for template in templates]
        tokens = self.backbone.tokenize(prompts)
        tower = self.backbone.text
        adapter, number = self._at(function)
        x_CLD = tower.trunk(tokens, self.first_blocks[1])
        features = adapter.text(x_CLD, tower.positions(tokens), number)
        return F.normalize(features.view(len(classes), len(templates), -1).mean(dim=1), dim=-1)
