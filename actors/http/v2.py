"""The Open Inference Protocol: health, metadata, infer, with named tensors in JSON.

Inputs: `image`, either BYTES (n) of base64-encoded files, or UINT8 (n, S, S, 3) of pixels.
Parameters: `task`, `labels`, `top_k`. Outputs: `label`, `probability` (n, k), `task`,
`task_confidence`, `unseen`, `unseen_probability`, `refused` (n). Requests are read by `tensors.py`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from archipelago.actors.http.backend import Backend
from archipelago.actors.http.decoders import Decoders
from archipelago.actors.http.intake import in_time, whole_body
from archipelago.actors.http.observe import Seen
from archipelago.actors.http.problems import Problem, cut, not_ready, unknown_task
from archipelago.actors.http.tensors import InferRequest
from archipelago.pipeline.learned.asking import Answer

MODEL = "archipelago"
PLATFORM = "archipelago_clip"
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    key: value
                    for key, value in InferRequest.model_json_schema(
                        ref_template="#/components/schemas/{model}"
                    ).items()
                    if key != "$defs"
                }
            }
        },
    },
    "responses": {"422": {}},
}


def router(backend: Backend, decoders: Decoders) -> APIRouter:
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
            raise Problem(404, f"model '{cut(name)}' does not exist; '{MODEL}' does")
        about = await backend.describe()
        if version is not None and version != str(about["generation"]):
            raise Problem(
                404, f"version {cut(version)} does not answer; {about['generation']} does"
            )
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

    async def answer(name: str, version: str | None, request: Request) -> dict[str, Any]:
        decoders.check()
        await known(name, version)
        body = await whole_body(request)
        async with in_time(request):
            size, deadline = await backend.image_size(), request.state.deadline
            wish = await decoders.read("infer", "application/json", body, size, deadline)
            del body
            count = len(wish.pixels)
            reply = await backend.classify(wish.pixels, [wish.ask] * count)
        if reply.unknown is not None:
            raise unknown_task(reply.unknown)
        if len(reply.answers) != count:
            raise not_ready()
        request.state.seen = Seen(reply, count)
        return {
            "model_name": MODEL,
            "model_version": str(reply.generation),
            "id": wish.name,
            "outputs": _outputs(reply.answers),
        }

    @routes.post("/models/{name}/infer", openapi_extra=BODY)
    async def infer(name: str, request: Request) -> dict[str, Any]:
        """Classify images."""
        return await answer(name, None, request)

    @routes.post("/models/{name}/versions/{version}/infer", openapi_extra=BODY)
    async def version_infer(name: str, version: str, request: Request) -> dict[str, Any]:
        """Classify images, by this generation or not at all."""
        return await answer(name, version, request)

    return routes


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
