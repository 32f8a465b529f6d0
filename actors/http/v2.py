"""The Open Inference Protocol: health, metadata, statistics and infer, with named tensors in JSON
or in binary behind it.

Inputs, parameters and outputs are in `tensors.py` and `outputs.py`. Errors are `{"error": "text"}`.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from archipelago.actors.http.calls import JSON, Calls
from archipelago.actors.http.described import SHOWN, body, errors
from archipelago.actors.http.outputs import configuration, encoded, inputs, outputs
from archipelago.actors.http.problems import PROTOCOL, Problem, cut
from archipelago.actors.http.statistics import Statistics
from archipelago.actors.http.tensors import InferRequest

MODEL = "archipelago"
PLATFORM = "archipelago_clip"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
JSON_BYTES = "Inference-Header-Content-Length"
MODELS, VERSION = "/models/{name}", "/models/{name}/versions/{version}"


def router(calls: Calls, statistics: Statistics) -> APIRouter:
    """All routes below /v2."""
    backend = calls.backend
    about = errors(404, 503, schema="ProtocolError")
    routes = APIRouter(prefix=PROTOCOL, tags=["open inference protocol"])
    models = APIRouter(responses=about)

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Server metadata."""
        return {"name": MODEL, "version": "1", "extensions": EXTENSIONS}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """This process answers."""
        return {"live": True}

    @routes.get("/health/ready", responses=errors(503, schema="ProtocolError"))
    async def ready() -> dict[str, bool]:
        """A replica of the model answers."""
        await backend.describe()
        return {"ready": True}

    async def known(name: str, version: str | None) -> dict[str, Any]:
        _check_name(name)
        about = await backend.describe()
        _check_version(version, about["generation"])
        return about

    async def stated(version: str | None) -> dict[str, Any]:
        about = await known(MODEL, version)
        return {"model_stats": [statistics.report(MODEL, str(about["generation"]))]}

    @models.get("/models/stats")
    async def all_statistics() -> dict[str, Any]:
        """Requests and how long they took, of all models: there is one."""
        return await stated(None)

    @models.get(MODELS)
    async def metadata(name: str) -> dict[str, Any]:
        """Names, types and shapes of the tensors."""
        return _metadata(await known(name, None))

    @models.get(VERSION)
    async def version_metadata(name: str, version: str) -> dict[str, Any]:
        """The same for the generation that answers."""
        return _metadata(await known(name, version))

    @models.get(f"{MODELS}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        """Whether the model answers."""
        await known(name, None)
        return {"name": name, "ready": True}

    @models.get(f"{VERSION}/ready")
    async def version_ready(name: str, version: str) -> dict[str, Any]:
        """Whether this generation answers."""
        await known(name, version)
        return {"name": name, "ready": True}

    @models.get(f"{MODELS}/config")
    async def config(name: str) -> dict[str, Any]:
        """The tensors in the words of the model configuration extension."""
        return configuration(MODEL, PLATFORM, (await known(name, None))["image_size"])

    @models.get(f"{VERSION}/config")
    async def version_config(name: str, version: str) -> dict[str, Any]:
        """The same for the generation that answers."""
        return configuration(MODEL, PLATFORM, (await known(name, version))["image_size"])

    @models.get(f"{MODELS}/stats")
    async def model_statistics(name: str) -> dict[str, Any]:
        """Requests and how long they took, since this ingress started."""
        _check_name(name)
        return await stated(None)

    @models.get(f"{VERSION}/stats")
    async def version_statistics(name: str, version: str) -> dict[str, Any]:
        """The same: sums are over all generations that answered since."""
        _check_name(name)
        return await stated(version)

    async def answer(name: str, version: str | None, request: Request) -> Response:
        _check_name(name)
        if version is not None:
            await known(name, version)
        found = await calls.classify(request, "infer", JSON, _json_bytes(request))
        _check_version(version, found.reply.generation)
        tensors, blobs = encoded(found.reply.answers, found.wish.outputs)
        said = {"model_name": MODEL, "model_version": str(found.reply.generation)}
        if found.wish.name is not None:
            said["id"] = found.wish.name
        return _packed({**said, "outputs": tensors}, blobs)

    infer_errors = errors(404, *SHOWN, schema="ProtocolError")

    @models.post(f"{MODELS}/infer", openapi_extra=body(InferRequest), responses=infer_errors)
    async def infer(name: str, request: Request) -> Response:
        """Classify images.

        With the header Inference-Header-Content-Length, binary tensors follow the JSON part.
        """
        return await answer(name, None, request)

    @models.post(f"{VERSION}/infer", openapi_extra=body(InferRequest), responses=infer_errors)
    async def version_infer(name: str, version: str, request: Request) -> Response:
        """Classify images, by this generation or not at all."""
        return await answer(name, version, request)

    routes.include_router(models)
    return routes


def _check_name(name: str) -> None:
    if name != MODEL:
        raise Problem(404, f"model '{cut(name)}' does not exist; '{MODEL}' does")


def _check_version(version: str | None, generation: int) -> None:
    if version is not None and version != str(generation):
        raise Problem(404, f"version {cut(version)} does not answer; {generation} does")


def _json_bytes(request: Request) -> int | None:
    """Length of the JSON part, None where it is all of the body; raises Problem 400."""
    told = request.headers.get(JSON_BYTES)
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) < 19):
        raise Problem(400, f"{JSON_BYTES}: '{cut(told)}' is no number of bytes")
    return int(told)


def _metadata(about: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": MODEL,
        "versions": [str(about["generation"])],
        "platform": PLATFORM,
        "inputs": inputs(about["image_size"]),
        "outputs": outputs(),
    }


def _packed(said: dict[str, Any], blobs: list[bytes]) -> Response:
    """JSON, and binary tensors behind it where there are any."""
    if not blobs:
        return JSONResponse(said)
    text = json.dumps(said).encode()
    headers = {JSON_BYTES: str(len(text))}
    return Response(b"".join([text, *blobs]), 200, headers, "application/octet-stream")
