"""The thin ingress: decodes, limits, passes on, and asks again; it never loads the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from archipelago.actors.http.app import create_app
from archipelago.actors.http.backend import Reply, Vectors
from archipelago.actors.http.observe import Meter
from archipelago.actors.http.problems import Problem, busy, not_ready
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.settings import ServingSettings

ATTEMPTS = 3  # a request is sent again when its replica died under it
AGAIN_S = 0.05


class ServeBackend:
    """The model behind Serve's handles. Accepted requests are lost with their replica, so a
    request that met a dying one is sent again; too many of them are refused at once."""

    def __init__(
        self, model: DeploymentHandle, publisher: DeploymentHandle, serving: ServingSettings
    ) -> None:
        self._model = model
        self._publisher = publisher
        self._serving = serving
        self._size = 0

    async def image_size(self) -> int:
        """Side of the model's input; asked once."""
        if not self._size:
            self._size = int((await self.describe())["image_size"])
        return self._size

    async def classify(self, images: np.ndarray, asks: Sequence[Ask]) -> Reply:
        """Answer, from whichever replica lives."""
        reply, again = await self._call("classify", images, list(asks))
        return replace(reply, again=again)

    async def embed(self, images: np.ndarray, texts: Sequence[str]) -> Vectors:
        """Vectors, from whichever replica lives."""
        vectors, again = await self._call("embed", images, list(texts))
        return replace(vectors, again=again)

    async def describe(self) -> dict[str, Any]:
        """What a replica says of itself."""
        return (await self._call("describe"))[0]

    async def lineage(self, task: str) -> dict[str, Any] | None:
        """Where a domain comes from."""
        return (await self._call("lineage", task))[0]

    async def example(self, task: str, index: int) -> bytes | None:
        """A stored image of a domain."""
        return (await self._call("example", task, index))[0]

    async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Through the publisher; refusals are problems."""
        if verb == "forget":
            call = self._publisher.forget.remote(**arguments)
        else:
            call = self._publisher.publish.remote(arguments["manifest"], verb)
        try:
            answer = dict(await call)
        except (RayActorError, DeploymentUnavailableError):
            raise not_ready("the publisher was lost; see /v1/models for what answers") from None
        code = answer.pop("code")
        if code != 200:
            raise Problem(code, answer["message"])
        return answer

    async def _call(self, method: str, *args: Any) -> tuple[Any, int]:
        deadline = time.monotonic() + self._serving.timeout_s
        for attempt in range(ATTEMPTS):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                call = getattr(self._model, method).remote(*args)
                return await asyncio.wait_for(_result(call), left), attempt
            except BackPressureError:
                raise busy() from None
            except (RayActorError, DeploymentUnavailableError):
                await asyncio.sleep(AGAIN_S * (attempt + 1))
            except TimeoutError:
                break
        raise not_ready()


async def _result(call: Any) -> Any:
    return await call


class Ingress:
    """Body of the ingress: decodes, limits, passes on."""

    def __init__(
        self, serving: dict[str, Any], token_sha256: str | None, model: Any, publisher: Any
    ) -> None:
        self.serving = ServingSettings.model_validate(serving)
        self.token_sha256 = token_sha256
        self.backend = ServeBackend(model, publisher, self.serving)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.backend, self.serving, self.token_sha256, Meter())
