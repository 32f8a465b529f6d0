"""The endpoint in Ray Serve: thin ingresses, replicas of the model, one publisher.

`jobs/serve.py` binds `application` and waits until it answers; `serve deploy deploy/serve.yaml`
declares the same, with `actors.endpoint:build` as its import path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from actors.http.admin import TOKEN, token_hash
from actors.http.app import create_app
from actors.http.backend import Reply
from actors.http.observe import Meter
from actors.http.problems import Problem, busy, not_ready
from actors.publisher import MODEL, Publisher
from actors.replica import Replica
from pipeline.serving.answer import Ask
from pipeline.settings import ServingSettings

PUBLISHER = "Publisher"
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
        return Reply(reply.generation, reply.answers, reply.milliseconds, reply.unknown, again)

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
            call = self._publisher.forget.remote(arguments["task"], arguments["erase"])
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


def application(
    run_dir: str, serving: ServingSettings, token_sha256: str | None, device: str = "auto"
) -> Any:
    """The bound application: what `serve.run` and `serve deploy` take."""
    plain = serving.model_dump(mode="json")
    actor = {"num_cpus": serving.num_cpus, "num_gpus": serving.num_gpus}
    small = {"num_cpus": min(serving.num_cpus, 0.1)}
    logs = LoggingConfig(encoding="JSON", enable_access_log=False)
    model = serve.deployment(
        name=MODEL,
        ray_actor_options=actor,
        max_ongoing_requests=2 * serving.batch_size,
        max_queued_requests=serving.queue,
        autoscaling_config=AutoscalingConfig(
            min_replicas=serving.replicas_min,
            max_replicas=serving.replicas_max,
            target_ongoing_requests=max(1.0, serving.batch_size / 2),
        ),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config=logs,
    )(Replica).bind(run_dir, plain, device)
    publisher = serve.deployment(
        name=PUBLISHER,
        num_replicas=1,
        ray_actor_options=small,
        max_ongoing_requests=64,
        logging_config=logs,
    )(Publisher).bind(run_dir, plain, serving.name, model)
    return serve.deployment(
        name="Ingress",
        num_replicas=serving.ingresses,
        ray_actor_options=small,
        max_ongoing_requests=1000,
        logging_config=logs,
    )(serve.ingress()(Ingress)).bind(plain, token_sha256, model, publisher)


def build(arguments: dict[str, Any]) -> Any:
    """Application builder for `serve deploy`; arguments: `run_dir`, and any of `serving.*`.

    The admin token is read from the environment of the process that builds.
    """
    values = dict(arguments)
    run_dir, device = str(values.pop("run_dir")), str(values.pop("device", "auto"))
    serving = ServingSettings.model_validate(values)
    return application(run_dir, serving, token_hash(os.environ.get(TOKEN)), device)


def publisher_of(app: str) -> DeploymentHandle:
    """The publisher of a running endpoint in this Ray."""
    return serve.get_deployment_handle(PUBLISHER, app)


def take_down(app: str) -> bool:
    """End an endpoint, and Serve with it if nothing else is served; whether there was one."""
    status = serve.status()
    there = app in status.applications
    if there:
        serve.delete(app)
    if not set(status.applications) - {app}:
        with contextlib.suppress(Exception):
            serve.shutdown()
    return there
