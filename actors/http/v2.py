"""The Open Inference Protocol: health, metadata, infer, with named tensors in JSON.

Inputs: `image`, either BYTES (n) of base64-encoded files, or UINT8 (n, S, S, 3) of pixels.
Parameters: `task`, `labels`, `top_k`. Outputs: `label`, `probability` (n, k), `task`,
`task_confidence`, `unseen`, `unseen_probability`, `refused` (n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from actors.http.backend import Backend
from actors.http.bodies import LONGEST_LABEL, check_ask, decode_images, from_base64
from actors.http.problems import Problem, not_ready
from pipeline.learned.asking import Answer, Ask
from pipeline.settings import ServingSettings

MODEL = "archipelago"
PLATFORM = "archipelago_clip"


class InferTensor(BaseModel):
    """A named tensor; `data` is flat or nested."""

    name: str
    shape: list[int] = Field(min_length=1, max_length=8)
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferParameters(BaseModel):
    """What is wanted, as in /v1/classify."""

    model_config = ConfigDict(extra="ignore")

    task: str | None = None
    labels: list[str] | None = None
    top_k: int = Field(5, ge=1, le=1000)


class InferRequest(BaseModel):
    """A request of the protocol."""

    id: str | None = Field(None, max_length=LONGEST_LABEL)
    inputs: list[InferTensor] = Field(min_length=1, max_length=1)
    outputs: list[dict[str, Any]] = Field(default_factory=list)
    parameters: InferParameters = InferParameters()


def router(backend: Backend, serving: ServingSettings) -> APIRouter:
    """All routes below /v2."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Server metadata."""
        return {"name": MODEL, "version": "1", "extensions": []}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """This process answers."""
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """A replica of the model answers."""
        await backend.describe()
        return {"ready": True}

    async def known(name: str, version: str | None) -> dict[str, Any]:
        if name != MODEL:
            raise Problem(404, f"model '{name}' does not exist; '{MODEL}' does")
        about = await backend.describe()
        if version is not None and version != str(about["generation"]):
            raise Problem(404, f"version {version} does not answer; {about['generation']} does")
        return about

    @routes.get("/models/{name}")
    async def metadata(name: str) -> dict[str, Any]:
        """Names, types and shapes of the tensors."""
        return _metadata(await known(name, None))

    @routes.get("/models/{name}/versions/{version}")
    async def version_metadata(name: str, version: str) -> dict[str, Any]:
        """The same for the generation that answers."""
        return _metadata(await known(name, version))

    @routes.get("/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        """Whether the model answers."""
        await known(name, None)
        return {"name": name, "ready": True}

    @routes.get("/models/{name}/versions/{version}/ready")
    async def version_ready(name: str, version: str) -> dict[str, Any]:
        """Whether this generation answers."""
        await known(name, version)
        return {"name": name, "ready": True}

    async def answer(name: str, version: str | None, request: InferRequest) -> dict[str, Any]:
        await known(name, version)
        wanted = request.parameters
        labels = None if wanted.labels is None else tuple(wanted.labels)
        ask = check_ask(Ask(wanted.task, labels, wanted.top_k), serving)
        size = await backend.image_size()
        images = await _images(request.inputs[0], size, serving)
        reply = await backend.classify(images, [ask] * len(images))
        if reply.unknown is not None:
            raise Problem(404, f"task '{reply.unknown}' is not learned")
        if len(reply.answers) != len(images):
            raise not_ready()
        return {
            "model_name": MODEL,
            "model_version": str(reply.generation),
            "id": request.id,
            "outputs": _outputs(reply.answers),
        }

    @routes.post("/models/{name}/infer")
    async def infer(name: str, request: InferRequest) -> dict[str, Any]:
        """Classify images."""
        return await answer(name, None, request)

    @routes.post("/models/{name}/versions/{version}/infer")
    async def version_infer(name: str, version: str, request: InferRequest) -> dict[str, Any]:
        """Classify images, by this generation or not at all."""
        return await answer(name, version, request)

    return routes


async def _images(tensor: InferTensor, size: int, serving: ServingSettings) -> np.ndarray:
    count = tensor.shape[0]
    if not 1 <= count <= serving.max_images:
        code = 413 if count > 0 else 422
        raise Problem(code, f"inputs.0.shape: 1 to {serving.max_images} images a request")
    if tensor.datatype == "BYTES":
        if len(tensor.data) != count or tensor.shape[1:] not in ([], [1]):
            raise Problem(422, f"inputs.0.data: {len(tensor.data)} files, shape {tensor.shape}")
        texts = [item if isinstance(item, str) else "" for item in tensor.data]
        files = [from_base64(text, f"inputs.0.data.{i}") for i, text in enumerate(texts)]
        return await decode_images(files, size, serving)
    if tensor.datatype != "UINT8":
        raise Problem(422, f"inputs.0.datatype: '{tensor.datatype}'; BYTES or UINT8")
    if tensor.shape[1:] != [size, size, 3]:
        raise Problem(422, f"inputs.0.shape: {tensor.shape}; [n, {size}, {size}, 3] is wanted")
    try:
        values = np.asarray(tensor.data, dtype=np.float64).reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError):
        raise Problem(422, f"inputs.0.data: not {tensor.shape} numbers") from None
    if not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise Problem(422, "inputs.0.data: whole numbers from 0 to 255 are wanted")
    return values.astype(np.uint8)


def _metadata(about: dict[str, Any]) -> dict[str, Any]:
    size = about["image_size"]
    return {
        "name": MODEL,
        "versions": [str(about["generation"])],
        "platform": PLATFORM,
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, size, size, 3]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "probability", "datatype": "FP64", "shape": [-1, -1]},
            {"name": "task", "datatype": "BYTES", "shape": [-1]},
            {"name": "task_confidence", "datatype": "FP64", "shape": [-1]},
            {"name": "unseen", "datatype": "BOOL", "shape": [-1]},
            {"name": "unseen_probability", "datatype": "FP64", "shape": [-1]},
            {"name": "refused", "datatype": "BOOL", "shape": [-1]},
        ],
    }


def _outputs(answers: tuple[Answer, ...]) -> list[dict[str, Any]]:
    """Flat tensors; where an image has fewer classes, they end with empty labels."""
    n, k = len(answers), max(len(answer.classes) for answer in answers)
    padded = [[*answer.classes, *[("", 0.0)] * (k - len(answer.classes))] for answer in answers]
    flat = [pair for row in padded for pair in row]

    def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": shape, "data": data}

    return [
        tensor("label", "BYTES", [n, k], [label for label, _ in flat]),
        tensor("probability", "FP64", [n, k], [p for _, p in flat]),
        tensor("task", "BYTES", [n], [answer.task or "" for answer in answers]),
        tensor("task_confidence", "FP64", [n], [answer.task_confidence for answer in answers]),
        tensor("unseen", "BOOL", [n], [answer.unseen for answer in answers]),
        tensor("unseen_probability", "FP64", [n], [a.unseen_probability for a in answers]),
        tensor("refused", "BOOL", [n], [answer.refused for answer in answers]),
    ]
