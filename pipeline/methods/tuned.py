"""Both encoders with trainable copies of their upper blocks and heads, and what a stage keeps.

Shapes: B batch, L tokens, D width, C classes, F embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.methods.adapter import pack
from archipelago.pipeline.methods.sequential import Continuing
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.towers import ImageTower, TextTower

KEPT = "kept."  # buffers of a stage, beside its weights


class TunedTowers(Continuing):
    """Weights of both encoders from some block on; of -1, their embeddings too.

    What a subclass keeps beside the weights is in its buffers: stored, checkpointed and taken over
    with them.

    Attributes:
        names: of the trainable weights.
        tuned: these weights.
        passing: how names of buffers begin that a checkpoint holds and a finished stage does not.
        origin: the same weights of frozen CLIP.
    """

    passing: str = "passing_"

    def __init__(self, backbone: Backbone, first_blocks: tuple[int, int]) -> None:
        super().__init__(backbone, first_blocks)
        towers: list[Any] = []
        self.names: list[str] = []
        self.origin: list[Tensor] = []
        tensors = []
        for side, frozen, first in (
            ("image", backbone.image, first_blocks[0]),
            ("text", backbone.text, first_blocks[1]),
        ):
            wanted = {id(p) for block in frozen.blocks[max(first, 0) :] for p in block.parameters()}
            wanted |= {id(p) for p in frozen.head()}
            wanted |= {id(p) for p in frozen.embedding()} if first < 0 else set()
            shared = {id(p): p for p in frozen.parameters() if id(p) not in wanted}
            tower = copy.deepcopy(frozen, dict(shared))  # the trunk is not copied for each stage
            before = dict(frozen.named_parameters())
            for name, parameter in tower.named_parameters():
                if id(parameter) not in shared:
                    self.names.append(f"{side}.{name}")
                    self.origin.append(before[name].detach())
                    tensors.append(parameter.requires_grad_(True))
            towers.append(tower)
        self._towers: tuple[ImageTower, TextTower] = (towers[0], towers[1])
        self.tuned = nn.ParameterList(tensors)

    def image(self, x_BLD: Tensor, task: int | Tensor = 0) -> Tensor:
        """Image features through the tuned blocks, the same for every task."""
        tower = self._towers[0]
        x_BD = tower.pooled(x_BLD, self.first_image)
        return F.normalize(tower.finish(x_BD), dim=-1)

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """Caption features through the tuned blocks."""
        tower = self._towers[1]
        x_CD = tower.pooled(x_CLD, self.first_text, None, position_C)
        return F.normalize(tower.finish(x_CD), dim=-1)

    def export(self) -> dict[str, Tensor]:
        """All tuned weights by name, and what is kept beside them."""
        pairs = zip(self.names, self.tuned, strict=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in pairs}
        tensors |= {f"{KEPT}{k}": getattr(self, k).cpu().contiguous() for k in self._kept()}
        if len(self.tasks) > 1:
            tensors["tasks"] = pack(self.tasks)
        return tensors

    def _kept(self) -> list[str]:
        return [name for name, _ in self.named_buffers() if not name.startswith(self.passing)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored weights; raises ValueError if they do not fit."""
        buffers = {f"{KEPT}{name}": name for name in self._kept()}
        wanted, given = {*self.names, *buffers}, set(tensors) - {"tasks"}
        if given != wanted:
            raise ValueError(f"tuned weights do not fit: '{sorted(given ^ wanted)[0]}'")
        for name, tensor in zip(self.names, self.tuned, strict=True):
            tensor.data.copy_(tensors[name])
        for key, name in buffers.items():
            setattr(self, name, tensors[key].clone())
