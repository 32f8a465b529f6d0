"""The publisher: one process that moves a run's pointer, once every replica is ready for it.

Prepare everywhere -> write the pointer -> activate everywhere -> wait until every replica that
Serve lists reports the generation. A refusal anywhere leaves all as it was.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ray.serve.handle import DeploymentHandle

from archipelago.actors.arguments import cache_dir
from archipelago.pipeline.errors import IntegrityError, LockedError, Refused, UserError
from archipelago.pipeline.serving.pointer import (
    Pointer,
    newest_pointer,
    next_pointer,
    write_pointer,
)
from archipelago.pipeline.settings import ServingSettings, TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.aliases import note_serving
from archipelago.pipeline.tracking.erase import forget_tracked
from archipelago.pipeline.tracking.location import of_run

if TYPE_CHECKING:
    from archipelago.pipeline.lifecycle.forget import Forgetting

log = logging.getLogger("ray.serve.archipelago")

PAUSE_S = 0.1
POOL_AGAIN_S = 10.0
NEVER_LOOK = ("prototype", "oracle")  # identifiers without a multimodal model
MODEL = "Model"


class Publisher:
    """Body of the publisher's deployment: one replica, one publication at a time.

    Every method answers plain data: `{"code": 200, "generation", ...}`, or an HTTP status with
    `{"message"}`.
    """

    def __init__(
        self,
        run_dir: str,
        serving: dict[str, Any],
        app: str,
        model: Any,
        tracking: dict[str, Any] | None = None,
    ) -> None:
        self.run = RunFolder.open(run_dir)
        self.serving = ServingSettings.model_validate(serving)
        self.app = app
        self.model: DeploymentHandle = model
        self._turn = asyncio.Lock()
        self._told = None if tracking is None else TrackingSettings.model_validate(tracking)
        self._tracking = ThreadPoolExecutor(1, "tracking")  # one at a time, in nobody's way
        self._pool: Any = None
        identifier = self.run.read()["config"]["identifier"]["name"]
        if self.serving.consult_s > 0 and identifier not in NEVER_LOOK:
            threading.Thread(target=self._hold, name="pool", daemon=True).start()

    def _hold(self) -> None:
        """Keep the multimodal model up while the endpoint is; without it signatures decide."""
        from archipelago.actors.consult import consults  # torch: only where it is needed
        from archipelago.actors.identify import IdentifierPool, in_pool
        from archipelago.pipeline.serving.model import run_settings

        settings = run_settings(self.run.read())
        if not (consults(settings, self.serving) and in_pool(settings)):
            return
        while self._pool is None:
            try:
                self._pool = IdentifierPool(settings).__enter__()
            except Exception as error:
                log.warning("no multimodal model: %s", " ".join(str(error).split()))
                time.sleep(POOL_AGAIN_S)

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.__exit__()

    async def publish(self, manifest: int | None, reason: str = "publish") -> dict[str, Any]:
        """Answer from a manifest, None for the newest; a manifest that answers stays as it is."""
        async with self._turn:
            try:
                return await self._publish(manifest, reason)
            except FileNotFoundError:
                return _problem(404, f"there is no manifest {manifest}")
            except (IntegrityError, Refused) as error:
                return _problem(422, str(error))

    async def forget(self, task: str, erase: bool, test: bool = False) -> dict[str, Any]:
        """Publish a manifest without a domain, then measure dependents and erase, as asked."""
        from archipelago.pipeline.lifecycle.forget import (
            forget_task,  # the model is loaded only for this
        )

        async with self._turn:
            try:
                plan = await asyncio.to_thread(forget_task, self.run.uri, task, self.serving)
                answer = await self._publish(plan.manifest, "forget")
                if answer["code"] != 200:
                    return answer
                mixed = [item for item in plan.dependents if item["rule"] == "remix"]
                # Of these the canary compares what was stored anew: this is the change itself.
                changes = {item["task"]: item["change"] for item in mixed}
                answer["changes"] = answer.get("changes", {}) | changes
                why = await asyncio.to_thread(self._retest, plan) if test else None
                erased = await asyncio.to_thread(plan.finish, erase)
                erased["untested"] = why
                tracked = self._track(forget_tracked, task, erase)
                if erase:  # a person waits for what is gone; else MLflow catches up on its own
                    erased["untracked"] = await asyncio.wrap_future(tracked) or 0
                return {**answer, "task": task, **erased}
            except (UserError, KeyError) as error:
                return _problem(404, str(error.args[0]))
            except LockedError as error:
                return _problem(503, f"the run is being written to: {error}")
            except (IntegrityError, Refused) as error:
                return _problem(422, str(error))

    def _retest(self, plan: Forgetting) -> str | None:
        from archipelago.pipeline.lifecycle.retest import retest
        from archipelago.pipeline.serving.model import run_settings

        settings = run_settings(self.run.read()).model_copy(update={"run_dir": self.run.uri})
        return retest(plan, settings, cache_dir(settings))

    async def _publish(self, manifest: int | None, reason: str) -> dict[str, Any]:
        clock = time.perf_counter()
        if manifest is None:
            versions = self.run.models.versions()
            if not versions:
                return _problem(404, "the run has no manifest yet")
            manifest = versions[-1]
        current = newest_pointer(self.run)
        new = next_pointer(self.run, manifest)
        if (new.manifest, new.sha256) == (current.manifest, current.sha256):
            return await self._acknowledged(current, clock)
        prepared = await self._all("prepare", new)
        if not prepared:
            return _problem(503, "no replica of the model is up")
        refusals = [reply for reply in prepared if reply["refused"]]
        if refusals:
            log.warning("manifest %d is refused: %s", manifest, refusals[0]["refused"])
            return _problem(422, refusals[0]["refused"])
        write_pointer(self.run, new, reason)
        await self._all("activate", new)
        answer = await self._acknowledged(new, clock)
        self._track(note_serving)
        changes: dict[str, float] = {}
        for reply in prepared:
            for name, change in reply["changes"].items():
                changes[name] = max(change, changes.get(name, 0.0))
        return {**answer, "changes": changes}

    def _track(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Tell MLflow, beside everything else; what goes wrong there is a line in the log."""

        def tell() -> Any:
            try:
                return work(self.run, of_run(self.run, self._told), *args)
            except Exception as error:
                log.warning("tracking: %s: %s", type(error).__name__, error)
                return None

        return self._tracking.submit(tell)

    async def _acknowledged(self, pointer: Pointer, clock: float) -> dict[str, Any]:
        """Wait until every replica that Serve lists as running reports the generation."""
        deadline = time.monotonic() + self.serving.publish_timeout_s
        while True:
            listed = await asyncio.to_thread(running_replicas, self.app)
            reports = await self._all("report")
            have = {r["replica"] for r in reports if r["generation"] >= pointer.generation}
            if listed and listed <= have:
                seconds = time.perf_counter() - clock
                log.info("generation %d answers on %d replicas", pointer.generation, len(listed))
                return {
                    "code": 200,
                    "generation": pointer.generation,
                    "manifest": pointer.manifest,
                    "replicas": sorted(listed),
                    "seconds": round(seconds, 3),
                }
            if time.monotonic() > deadline:
                late = ", ".join(sorted(listed - have)) or "none is up"
                return _problem(
                    503, f"generation {pointer.generation} is published, but not everywhere: {late}"
                )
            if listed - have:
                await self._all("activate", pointer)
            await asyncio.sleep(PAUSE_S)

    async def _all(self, method: str, *args: Any) -> list[dict[str, Any]]:
        """Ask every running replica; one that dies meanwhile is no answer."""
        response = self.model.broadcast(method, *args)
        found = await response.results_async(
            timeout_s=self.serving.publish_timeout_s, return_exceptions=True
        )
        for reply in found:
            if isinstance(reply, BaseException):
                log.warning("a replica did not %s: %s", method, type(reply).__name__)
        return [reply for reply in found if isinstance(reply, Mapping)]  # type: ignore[misc]


def running_replicas(app: str) -> set[str]:
    """Replicas of the model that Serve's controller lists as running."""
    from ray.serve.context import _get_global_client  # no public way without the dashboard

    client: Any = _get_global_client()
    details = client.get_serve_details()
    model = details["applications"][app]["deployments"][MODEL]
    return {r["replica_id"] for r in model["replicas"] if str(r["state"]).endswith("RUNNING")}


def _problem(code: int, message: str) -> dict[str, Any]:
    return {"code": code, "message": " ".join(message.split())}
