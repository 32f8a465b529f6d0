"""The pool of multimodal models: a Serve deployment without HTTP route, for jobs and for serving.

    with IdentifierPool(settings) as pool:
        pool.scorer.describe(images, classes, seed)
        pool.scorer.score(images, descriptions, "likelihood", seed)
        await pool.scorer.score_soon(images, descriptions, "likelihood", seed, deadline_s=0.2)

Replicas are health-checked and replaced by Serve, and more are started under load. The application
is named by code and model: jobs with the same model share it, another version gets its own. It
lives as long as somebody holds a lease (`actors/lease.py`).

Serve does not retry a request that a replica had accepted when it died; the scorer here does, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import RayActorError, RayError, RayTaskError

from archipelago.actors.lease import Lease
from archipelago.pipeline import identifiers
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.processor import EMBEDDED, folder_digest
from archipelago.pipeline.identifiers.scorer import (
    Scorer,
    ScorerError,
    Scores,
    build_scorer,
    check_driver,
)
from archipelago.pipeline.settings import IdentifyPoolSettings, Settings

log = logging.getLogger(__name__)

POOL, DEPLOYMENT = "archipelago-identify", "model"
LARGEST_BATCH = 8  # requests that a replica answers together; a job's request holds many images
WAIT_S = 0.005  # for others to join a batch
# What makes another pool.
SHAPE = ("driver", "model", "endpoint", "device", "dtype", "attention", "options")


class Model:
    """Body of a replica: one scorer, one batch at a time."""

    def __init__(self, settings: MultimodalSettings, threads: int) -> None:
        from ray import serve

        self._scorer = build_scorer(settings, threads)
        self._busy = threading.Lock()
        joined = serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=WAIT_S)
        self._joined = joined(self._together)

    async def facts(self) -> dict[str, Any]:
        """Which model this is, and where."""
        return {"model": self._scorer.model, "pid": os.getpid()}

    async def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        """See `Scorer.describe`."""
        return await asyncio.to_thread(self._locked, "describe", images, classes, seed)

    async def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        """See `Scorer.score`; answered together with whoever asks the same at the same time."""
        return await self._joined((images, tuple(descriptions), scoring, seed))

    async def _together(self, requests: list[tuple[Any, ...]]) -> list[Scores]:
        answers: list[Scores] = [Scores(np.zeros((0, 0)))] * len(requests)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, (images, *rest) in enumerate(requests):
            alike.setdefault((images.shape[1:], *rest), []).append(index)
        for (_, *rest), members in alike.items():
            images = [requests[index][0] for index in members]
            whole = await asyncio.to_thread(
                self._locked, "score", np.array(np.concatenate(images)), *rest
            )
            ends = np.cumsum([len(part) for part in images])[:-1]
            for index, values in zip(members, np.split(whole.values, ends), strict=True):
                first = index == members[0]
                answers[index] = Scores(values, whole.parse_failures if first else 0)
        return answers

    def _locked(self, method: str, *args: Any) -> Any:
        with self._busy:
            return getattr(self._scorer, method)(*args)


class PooledScorer:
    """A `Scorer` whose model is in the pool. Safe to use from several threads."""

    remote = True

    def __init__(self, handle: Any, model: str, parallel: int, timeout_s: float) -> None:
        self.model, self.parallel = model, parallel
        self._handle, self._timeout_s = handle, timeout_s
        self._threads = ThreadPoolExecutor(2 * parallel + 2, "identify")
        self.retried = 0

    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        """See `Scorer.describe`."""
        return self._wait("describe", images, tuple(classes), seed)

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        """See `Scorer.score`; rows of NaN where the pool did not answer."""
        try:
            return self._wait("score", images, tuple(descriptions), scoring, seed)
        except ScorerError as error:
            log.warning("%s; the signature answers instead", error)
            return Scores(np.full((len(images), len(descriptions) + 1), np.nan, np.float32))

    async def score_soon(
        self,
        images: np.ndarray,
        descriptions: Sequence[str],
        scoring: str,
        seed: int,
        deadline_s: float,
    ) -> Scores | None:
        """The same for an event loop; None when there is no answer in time."""
        call = self._handle.score.remote(images, tuple(descriptions), scoring, seed)
        try:
            return await asyncio.wait_for(call, deadline_s)
        except (TimeoutError, RayError):
            with contextlib.suppress(Exception):
                call.cancel()
            return None

    def _wait(self, method: str, *args: Any) -> Any:
        # On a thread of its own: a wait in Ray's core is deaf to signals.
        return self._threads.submit(self._call, method, *args).result()

    def _call(self, method: str, *args: Any) -> Any:
        for last in (False, True):
            try:
                call = getattr(self._handle, method).remote(*args)
                return call.result(timeout_s=self._timeout_s)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, UserError | ScorerError):
                    raise cause from None
                raise
            except (RayActorError, RayError, TimeoutError) as error:
                if last:
                    raise ScorerError(
                        f"the pool did not answer ({type(error).__name__})"
                    ) from error
                self.retried += 1
        raise AssertionError


class IdentifierPool:
    """A lease on the pool of the model that the settings name; starts it if it is not there.

    A context manager. In this process without Ray where `cluster.identify.max_replicas=0`, and
    for endpoints: their model runs elsewhere anyway, and the key stays in this process.

    Attributes:
        scorer: the model.
        name: of the Serve application; empty without one.
    """

    scorer: Scorer

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.multimodal
        self._cluster = settings.cluster.identify
        self.name = pool_name(self._settings, self._cluster) if in_pool(settings) else ""
        self._lease: Lease | None = None

    def __enter__(self) -> IdentifierPool:
        """Find or start the pool.

        Raises:
            UserError: settings that can never work, or its model cannot be loaded.
        """
        if not self.name:
            self.scorer = build_scorer(self._settings)
            return self
        check_driver(self._settings)
        self._lease = Lease(self.name, uuid.uuid4().hex, self._cluster.lease_s)
        try:
            handle = ThreadPoolExecutor(1).submit(self._deploy).result()
            facts = handle.facts.remote().result(timeout_s=self._settings.timeout_s)
        except BaseException:
            self._lease.release()
            raise
        log.info("identify: %s in %s", facts["model"], self.name)
        self.scorer = PooledScorer(
            handle, facts["model"], 2 * self._cluster.max_replicas, self._settings.timeout_s
        )
        return self

    def __exit__(self, *error: object) -> None:
        """Give the lease back."""
        if self._lease is not None:
            self._lease.release()

    def _deploy(self) -> Any:
        """The handle of the application, running."""
        from ray import serve
        from ray.serve.config import AutoscalingConfig
        from ray.serve.schema import LoggingConfig

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        serve.start(proxy_location="Disabled", logging_config=quiet)  # no-op where it runs already
        known = serve.status().applications.get(self.name)
        if known is not None and known.status == "RUNNING":
            return serve.get_app_handle(self.name)
        cluster = self._cluster
        actor: dict[str, Any] = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus}
        if cluster.memory_gib:
            actor["memory"] = int(cluster.memory_gib * 2**30)
        threads = cluster.threads or max(1, (os.cpu_count() or 1) // cluster.max_replicas)
        plain: Any = serve.deployment(Model, name=DEPLOYMENT)
        deployment = plain.options(
            ray_actor_options=actor,
            autoscaling_config=AutoscalingConfig(
                min_replicas=cluster.min_replicas,
                max_replicas=cluster.max_replicas,
                target_ongoing_requests=2,
                upscale_delay_s=5,
            ),
            max_ongoing_requests=2 * LARGEST_BATCH,
            health_check_period_s=2,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=2,
            logging_config=quiet,
            max_constructor_retry_count=3,
        )
        try:
            bound = deployment.bind(self._settings, threads)
            return serve.run(bound, name=self.name, route_prefix=None)
        except RuntimeError as error:
            raise UserError(
                f"identifier.model={self._settings.model}: no replica of it started; see Ray's logs"
                f" of {self.name}, or try it with cluster.identify.max_replicas=0"
            ) from error


def in_pool(settings: Settings) -> bool:
    """Whether the model of these settings runs in replicas."""
    return settings.cluster.identify.max_replicas > 0 and settings.multimodal.driver != "openai"


def pool_name(settings: MultimodalSettings, cluster: IdentifyPoolSettings) -> str:
    """Name of the application: changes with code, model and resources."""
    total = hashlib.sha256(cluster.model_dump_json().encode())
    total.update(settings.model_dump_json(include=set(SHAPE)).encode())
    package = Path(identifiers.__file__).parent
    for file in (*sorted(package.rglob("*.py")), Path(__file__)):
        total.update(file.read_bytes())
    folder = Path(EMBEDDED.get(settings.model, settings.model))
    if folder.is_dir():
        total.update(folder_digest(folder).encode())
    return f"{POOL}-{total.hexdigest()[:12]}"
