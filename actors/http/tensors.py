"""Requests of the Open Inference Protocol. Read in a decoder's process, as `bodies.py` is.

Inputs: `image`, either BYTES (n) of base64-encoded files, or UINT8 (n, S, S, 3) of pixels.
Parameters: `task`, `labels`, `top_k`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archipelago.actors.http.bodies import (
    LONGEST_LABEL,
    Task,
    Text,
    Texts,
    Wish,
    check_ask,
    check_lengths,
    from_base64_all,
    read_json,
    validated,
)
from archipelago.actors.http.problems import Problem, cut
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.settings import ServingSettings

MOST_OUTPUTS = 64
Name = Annotated[Text, Field(max_length=LONGEST_LABEL)]
Shape = Annotated[list[int], Field(fail_fast=True)]
Parameters = Annotated[dict[Name, Any], Field(max_length=MOST_OUTPUTS)]


class InferTensor(BaseModel):
    """A named tensor; `data` is flat or nested."""

    name: Name
    shape: Shape = Field(min_length=1, max_length=8)
    datatype: Name
    data: list[Any] = Field(max_length=2**24)
    parameters: Parameters = Field(default_factory=dict)


class InferParameters(BaseModel):
    """What is wanted, as in /v1/classify."""

    model_config = ConfigDict(extra="ignore")

    task: Task | None = None
    labels: Texts | None = None
    top_k: int = Field(5, ge=1, le=1000)


class InferRequest(BaseModel):
    """A request of the protocol."""

    id: Name | None = None
    inputs: Annotated[list[InferTensor], Field(fail_fast=True)] = Field(min_length=1, max_length=1)
    outputs: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(
        default_factory=list, max_length=MOST_OUTPUTS
    )
    parameters: InferParameters = InferParameters()


def read_tensors(body: bytes | bytearray, size: int, limits: ServingSettings) -> Wish:
    """Parse an infer request for a model of S = `size`.

    Raises:
        Problem: 400, 413 or 422.
    """
    values = read_json(body)
    given = values.get("parameters")
    check_lengths(None, given.get("labels") if isinstance(given, dict) else None, limits)
    request = validated(InferRequest, values)
    wanted, tensor = request.parameters, request.inputs[0]
    labels = None if wanted.labels is None else tuple(wanted.labels)
    ask = check_ask(Ask(wanted.task, labels, wanted.top_k), limits)
    count = tensor.shape[0]
    if not 1 <= count <= limits.max_images:
        code = 413 if count > 0 else 422
        raise Problem(code, f"inputs.0.shape: 1 to {limits.max_images} images a request")
    if tensor.datatype == "BYTES":
        if len(tensor.data) != count or tensor.shape[1:] not in ([], [1]):
            shape = cut(tensor.shape)
            raise Problem(422, f"inputs.0.data: {len(tensor.data)} files, shape {shape}")
        texts = [item if isinstance(item, str) else "" for item in tensor.data]
        return Wish(ask, from_base64_all(texts, "inputs.0.data"), name=request.id)
    if tensor.datatype != "UINT8":
        raise Problem(422, f"inputs.0.datatype: '{cut(tensor.datatype)}'; BYTES or UINT8")
    if tensor.shape[1:] != [size, size, 3]:
        shape = cut(tensor.shape)
        raise Problem(422, f"inputs.0.shape: {shape}; [n, {size}, {size}, 3] is wanted")
    return Wish(ask, pixels=_pixels(tensor), name=request.id)


def _pixels(tensor: InferTensor) -> np.ndarray:
    try:
        values = np.asarray(tensor.data)
        whole = values.dtype.kind in "iuf" and (values == np.floor(values)).all()
        if not whole or not ((values >= 0) & (values <= 255)).all():
            raise Problem(422, "inputs.0.data: whole numbers from 0 to 255 are wanted")
        return values.astype(np.uint8).reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError):
        raise Problem(422, f"inputs.0.data: not {cut(tensor.shape)} numbers") from None
