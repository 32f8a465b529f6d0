"""Requests of the Open Inference Protocol. Read in a decoder's process, as `bodies.py` is.

Inputs, one a request: `image`, UINT8 (n, S, S, 3) of pixels, or `file`, BYTES (n) of image files,
base64-encoded in JSON and as they are in binary. Parameters: `task`, `labels`, `top_k`.
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
    check_count,
    from_base64_all,
    read_json,
    read_list,
    validated,
)
from archipelago.actors.http.outputs import BINARY, FILE, IMAGE, LENGTH, OUTPUTS
from archipelago.actors.http.problems import Problem, cut
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.settings import ServingSettings

MOST_OUTPUTS = 64
NOT_HERE = ("classification", "shared_memory_region")  # extensions that would change the answer
Name = Annotated[Text, Field(max_length=LONGEST_LABEL)]
Shape = Annotated[list[int], Field(fail_fast=True)]
Parameters = Annotated[dict[Name, Any], Field(max_length=MOST_OUTPUTS)]


class InferTensor(BaseModel):
    """A named tensor; `data` is flat or nested, and not there for binary ones."""

    name: Name
    shape: Shape = Field(min_length=1, max_length=8)
    datatype: Name
    data: list[Any] | None = Field(None, max_length=2**24)
    parameters: Parameters = Field(default_factory=dict)


class InferOutput(BaseModel):
    """A tensor that is wanted back; with `binary_data` after the JSON part."""

    name: Name
    parameters: Parameters = Field(default_factory=dict)


class InferParameters(BaseModel):
    """What is wanted, as in /v1/classify."""

    model_config = ConfigDict(extra="ignore")

    task: Task | None = None
    labels: Texts | None = Field(None, description="also as a JSON list in a text")
    top_k: int = Field(5, ge=1, le=1000)
    binary_data_output: bool = Field(False, description="all outputs in binary")


class InferRequest(BaseModel):
    """A request of the protocol."""

    id: Name | None = None
    inputs: Annotated[list[InferTensor], Field(fail_fast=True)] = Field(min_length=1, max_length=1)
    outputs: Annotated[list[InferOutput], Field(fail_fast=True)] = Field(
        default_factory=list, max_length=MOST_OUTPUTS, description="all of them unless given"
    )
    parameters: InferParameters = InferParameters()


def read_tensors(
    body: bytes | bytearray, json_bytes: int | None, size: int, limits: ServingSettings
) -> Wish:
    """Parse an infer request for a model of S = `size`.

    Args:
        body: JSON, and behind it binary tensors where
        json_bytes: says how long it is.
        size: S.
        limits: what is refused.

    Raises:
        Problem: 400, 413 or 422.
    """
    json_bytes = len(body) if json_bytes is None else json_bytes
    if json_bytes > len(body):
        raise Problem(400, f"Inference-Header-Content-Length: the body has {len(body)} bytes")
    values = read_json(body[:json_bytes])
    given = values.get("parameters")
    if isinstance(given, dict):
        if isinstance(given.get("labels"), str):  # parameters of the protocol are no lists
            given["labels"] = read_list(given["labels"], "parameters.labels")
        check_count(given.get("labels"), "labels", limits)
    request = validated(InferRequest, values)
    wanted, tensor = request.parameters, request.inputs[0]
    labels = None if wanted.labels is None else tuple(wanted.labels)
    ask = check_ask(Ask(wanted.task, labels, wanted.top_k), limits)
    outputs = _outputs(request)
    _check_input(tensor, size, limits)
    rest = memoryview(body)[json_bytes:]
    binary = _binary_size(tensor, len(rest))
    if tensor.datatype == "BYTES":
        files = _split(rest, tensor.shape[0]) if binary else _decoded(tensor)
        return Wish(ask, files, name=request.id, outputs=outputs)
    pixels = _unpacked(tensor, rest) if binary else _pixels(tensor)
    return Wish(ask, pixels=pixels, name=request.id, outputs=outputs)


def _outputs(request: InferRequest) -> tuple[tuple[str, bool], ...]:
    """(name, whether in binary) of what comes back; by default all of it."""
    usual = request.parameters.binary_data_output
    if not request.outputs:
        return tuple((name, usual) for name in OUTPUTS)
    found = []
    for index, output in enumerate(request.outputs):
        if output.name not in OUTPUTS:
            known = ", ".join(OUTPUTS)
            raise Problem(422, f"outputs.{index}.name: '{cut(output.name)}'; there are {known}")
        _check_extensions(output.parameters, f"outputs.{index}")
        found.append((output.name, bool(output.parameters.get("binary_data", usual))))
    return tuple(dict(found).items())


def _check_extensions(parameters: dict[str, Any], where: str) -> None:
    for name in NOT_HERE:
        if name in parameters:
            raise Problem(422, f"{where}.parameters.{name}: this extension is not offered")


def _check_input(tensor: InferTensor, size: int, limits: ServingSettings) -> None:
    """Name, type and shape of the input; raises Problem 413 or 422."""
    if tensor.name not in (IMAGE, FILE):
        raise Problem(422, f"inputs.0.name: '{cut(tensor.name)}'; {IMAGE} or {FILE}")
    _check_extensions(tensor.parameters, "inputs.0")
    count, shape = tensor.shape[0], cut(tensor.shape)
    if not 1 <= count <= limits.max_images:
        code = 413 if count > 0 else 422
        raise Problem(code, f"inputs.0.shape: 1 to {limits.max_images} images a request")
    if tensor.datatype == "BYTES":
        if tensor.shape[1:] not in ([], [1]):
            raise Problem(422, f"inputs.0.shape: {shape}; [n] is wanted")
    elif tensor.datatype != "UINT8" or tensor.name == FILE:
        known = "BYTES" if tensor.name == FILE else "UINT8 (pixels) or BYTES (files)"
        raise Problem(422, f"inputs.0.datatype: '{cut(tensor.datatype)}'; {known}")
    elif tensor.shape[1:] != [size, size, 3]:
        raise Problem(422, f"inputs.0.shape: {shape}; [n, {size}, {size}, 3] is wanted")


def _binary_size(tensor: InferTensor, there: int) -> bool:
    """Whether the input is all that follows the JSON part; raises Problem 422."""
    told = tensor.parameters.get(BINARY)
    if told is None and there == 0:
        return False
    if isinstance(told, bool) or told != there:
        words = f"{there} bytes follow the JSON part"
        raise Problem(422, f"inputs.0.parameters.{BINARY}: {cut(told)}; {words}")
    return True


def _decoded(tensor: InferTensor) -> list[bytes]:
    """Files from base64."""
    data = tensor.data or []
    if len(data) != tensor.shape[0]:
        raise Problem(422, f"inputs.0.data: {len(data)} files, shape {cut(tensor.shape)}")
    texts = [item if isinstance(item, str) else "" for item in data]
    return from_base64_all(texts, "inputs.0.data")


def _split(rest: memoryview, count: int) -> list[bytes]:
    """So many files, each behind its length."""
    files: list[bytes] = []
    at = 0
    while at < len(rest) and len(files) < count:
        start = at + LENGTH.size
        if start > len(rest):
            break
        at = start + LENGTH.unpack(rest[at:start])[0]
        files.append(bytes(rest[start:at]))
    if at != len(rest) or len(files) != count:
        raise Problem(422, f"inputs.0: the bytes are not {count} files, each behind its length")
    return files


def _unpacked(tensor: InferTensor, rest: memoryview) -> np.ndarray:
    """Pixels from bytes."""
    shape = tuple(tensor.shape)
    if len(rest) != int(np.prod(shape)):
        raise Problem(422, f"inputs.0: {len(rest)} bytes, shape {cut(tensor.shape)}")
    return np.frombuffer(rest, np.uint8).reshape(shape)


def _pixels(tensor: InferTensor) -> np.ndarray:
    """Pixels from numbers."""
    try:
        values = np.asarray(tensor.data or [])
        whole = values.dtype.kind in "iuf" and (values == np.floor(values)).all()
        if not whole or not ((values >= 0) & (values <= 255)).all():
            raise Problem(422, "inputs.0.data: whole numbers from 0 to 255 are wanted")
        return values.astype(np.uint8).reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError):
        raise Problem(422, f"inputs.0.data: not {cut(tensor.shape)} numbers") from None
