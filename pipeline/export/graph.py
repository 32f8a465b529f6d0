"""One domain's function as a torch module: pixels in, class probabilities out.

The scores of `pipeline/methods` are numpy on features that were computed before; here they are part
of the graph, so that it can be exported. `onnx.py` holds the two against each other.

Shapes: B batch, S side, C classes of the domain, K compact features, F embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.learned.model import LearnedModel
from archipelago.pipeline.learned.passes import FeaturePass
from archipelago.pipeline.methods.archipelago import Archipelago
from archipelago.pipeline.methods.base import Method
from archipelago.pipeline.methods.closed import ClosedForm

KNOWN = {Method.scores: "group", ClosedForm.scores: "head", Archipelago.scores: "both"}


class DomainGraph(nn.Module):
    """What `model.answer(images, task=task)` gives, over all classes of the domain.

    Raises:
        UserError: the domain is not learned, or its method has no such graph.
    """

    text_CF: Tensor
    mean_S: Tensor
    scale_S: Tensor
    projection_SK: Tensor
    weights_KC: Tensor
    bias_C: Tensor
    debiased_F: Tensor
    clip_FC: Tensor
    unknown_C: Tensor

    def __init__(self, model: LearnedModel, task: str) -> None:
        super().__init__()
        state, runtime = model.state, model.runtime
        if task not in state.records:
            known = ", ".join(state.records) or "none"
            raise UserError(f"onnx={task}: is not learned; learned are: {known}")
        method, record = state.method, state.records[task]
        kind = KNOWN.get(type(method).scores)
        function = state.function(None if method.policy == "one" else task)
        if kind is None or function is None:
            raise UserError(f"onnx={task}: functions of method {method.name} have no graph")
        if kind == "both" and function.weights is None:
            kind = "head"
        self._backbone = (runtime.backbone,)  # a tuple: of its weights only what runs is exported
        self._pass = FeaturePass(method, runtime.settings.identifier)
        self._encode = None if kind == "head" else method.encoder(function)
        self.kind, self.scale = kind, float(method.scale)
        self.classes = record.classes
        self.size = runtime.backbone.image_size
        if kind != "head":
            own = record.own_CF
            if kind == "group":
                own = runtime.texts(state).get(
                    record.listed, function, state.versions.get(function.weights or "")
                )
            assert own is not None
            self._keep("text_CF", own)
            whose = method.records.get(function.task)
            self.temperature = 1.0 if whose is None or kind == "both" else whose.temperature
        if isinstance(method, ClosedForm) and kind != "group":
            self._keep_head(method, record)
        self.blend: Any = None
        if isinstance(method, Archipelago) and kind == "both":
            self.blend = method.blend(task)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Probabilities (B, C) of RGB images (B, 3, S, S) with values from 0 to 1."""
        backbone = self._backbone[0]
        x_BLD, raw_BS, frozen_BF = self._pass.tensors((image_BCHW - backbone.mean) / backbone.std)
        if self.kind == "head":
            return self._head(raw_BS, frozen_BF).softmax(dim=1).float()
        assert self._encode is not None
        v_BF = self._encode(x_BLD)
        group_BC = self.scale / self.temperature * v_BF @ self.text_CF.T
        if self.kind == "group":
            return group_BC.softmax(dim=1)
        blend = self.blend
        mixed = 0.5 * self._head(raw_BS, frozen_BF).log_softmax(dim=1) / blend.head
        mixed = mixed + 0.5 * group_BC.double().log_softmax(dim=1) / blend.group
        return (blend.sharpness * mixed).softmax(dim=1).float()

    def _head(self, raw_BS: Tensor, frozen_BF: Tensor) -> Tensor:
        """`q (x W + b) + w clip`, -inf for classes without an image, in double precision."""
        compact_BK = ((raw_BS - self.mean_S) / self.scale_S) @ self.projection_SK
        z_BC = compact_BK.double() @ self.weights_KC + self.bias_C
        if self.clip_weight:
            z_BC = z_BC + (frozen_BF.double() - self.debiased_F) @ self.clip_FC
        return z_BC + self.unknown_C

    def _keep_head(self, method: ClosedForm, record: Any) -> None:
        head, basis = method.head(record), method.basis
        assert basis is not None
        self._keep("mean_S", basis.mean)
        self._keep("scale_S", basis.scale)
        self._keep("projection_SK", basis.projection.astype(np.float32))
        self._keep("weights_KC", head.sharpness * head.weights.astype(np.float64))
        self._keep("bias_C", head.sharpness * head.bias.astype(np.float64))
        self._keep("unknown_C", np.where(head.known, 0.0, -np.inf))
        self.clip_weight = float(head.clip_weight)
        if self.clip_weight:
            text = record.text_CF.astype(np.float64)
            self._keep("clip_FC", self.clip_weight * self.scale * text.T)
            self._keep("debiased_F", method.debias * basis.frozen_mean.astype(np.float64))

    def _keep(self, name: str, array: np.ndarray) -> None:
        device = self._backbone[0].device
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)).to(device))
