"""The endpoint in Ray Serve: thin ingresses, replicas of the model, one publisher.

`jobs/serve.py` binds `application` and waits until it answers; `serve deploy deploy/serve.yaml`
declares the same, with `archipelago.actors.endpoint:build` as its import path.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from archipelago.actors.http.admin import TOKEN, token_hash
from archipelago.actors.identify import POOL
from archipelago.actors.ingress import Ingress
from archipelago.actors.publisher import MODEL, Publisher
from archipelago.actors.replica import Replica
from archipelago.pipeline.settings import ServingSettings, TrackingSettings

PUBLISHER = "Publisher"
POOLS_GO_S = 15.0


def application(
    run_dir: str,
    serving: ServingSettings,
    token_sha256: str | None,
    device: str = "auto",
    tracking: TrackingSettings | None = None,
) -> Any:
    """The bound application: what `serve.run` and `serve deploy` take.

    `tracking` says where publications are noted; by default where the run itself is tracked.
    """
    where = None if tracking is None else tracking.model_dump(mode="json")
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
    )(Publisher).bind(run_dir, plain, serving.name, model, where)
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


def _wait_for_pools() -> None:
    """A pool that only this endpoint used goes with its lease; a job's stays, and Serve with it."""
    deadline = time.monotonic() + POOLS_GO_S
    while time.monotonic() < deadline:
        apps = serve.status().applications
        if not apps or not all(name.startswith(POOL) for name in apps):
            return
        time.sleep(0.2)


def take_down(app: str) -> bool:
    """End an endpoint, and Serve with it if nothing else is served; whether there was one."""
    status = serve.status()
    there = app in status.applications
    if there:
        serve.delete(app)
        _wait_for_pools()
        status = serve.status()
    if not set(status.applications) - {app}:
        with contextlib.suppress(Exception):
            serve.shutdown()
    return there
