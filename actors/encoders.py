"""A small pool of encoder actors: forward passes for signatures and evaluation, on GPUs if any.

The pool has the methods of `pipeline.evaluation.engine.Engine`. Rows are cut into contiguous
pieces, one an actor. An actor that dies is restarted by Ray and its call repeated: every call
carries all that it needs, so a fresh actor answers like the old one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from pipeline.evaluation.engine import Engine, EngineSpec
from pipeline.model.kernels import Kernels, probe, resolve_device
from pipeline.settings import Settings
from pipeline.store import GroupRef

log = logging.getLogger(__name__)


class Encoder:
    """Body of one actor: an engine per specification, built when first asked for."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def probe(self, settings: Settings) -> Kernels:
        """The kernels that suit this machine."""
        _use_threads(settings)
        backbone = settings.backbone
        device = resolve_device(settings.cluster.device)
        return probe(backbone.attention, backbone.precision, device)

    def call(
        self, spec: EngineSpec, refs: Sequence[GroupRef], method: str, args: tuple[Any, ...]
    ) -> Any:
        """Run one method of the engine that `spec` describes, with these groups installed."""
        key = spec.settings.model_dump_json() + spec.run
        if key not in self._engines:
            self._engines[key] = Engine(spec)
        engine = self._engines[key]
        engine.install(refs)
        return getattr(engine, method)(*args)


class EncoderPool:
    """Encoders of a run; with `cluster.encode.num_workers=0` one in this process.

    Use as a context manager: the actors are gone when it ends.
    """

    def __init__(self, settings: Settings) -> None:
        workers = settings.cluster.encode
        self._local = Encoder() if workers.num_workers == 0 else None
        self._actors: list[Any] = []
        options = {
            "num_cpus": workers.num_cpus,
            "num_gpus": workers.num_gpus,
            "max_restarts": settings.cluster.max_failures,
            "max_task_retries": settings.cluster.max_failures,
        }
        if workers.memory_gib:
            options["memory"] = int(workers.memory_gib * 2**30)
        actor = ray.remote(Encoder) if workers.num_workers else None
        for _ in range(workers.num_workers):
            assert actor is not None
            self._actors.append(actor.options(**options).remote())

    def __enter__(self) -> EncoderPool:
        """The pool itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def probe(self, settings: Settings) -> Kernels:
        """Kernels measured on the first encoder."""
        if self._local is not None:
            return self._local.probe(settings)
        return self._actors[0].probe.remote(settings).future().result()

    def engine(self, spec: EngineSpec) -> PooledEngine:
        """An engine-like view of the pool for one method's functions."""
        return PooledEngine(self, spec)

    def call_each(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """One call per encoder, answers in order."""
        if self._local is not None:
            return [self._local.call(*call) for call in calls]
        pairs = zip(self._actors, calls, strict=False)
        # Futures, not ray.get: that is deaf to signals until the answer is there.
        answers = [actor.call.remote(*call).future() for actor, call in pairs]
        return [answer.result() for answer in answers]

    @property
    def size(self) -> int:
        """Number of encoders."""
        return max(1, len(self._actors))


class PooledEngine:
    """Same methods as `Engine`, spread over the pool."""

    def __init__(self, pool: EncoderPool, spec: EngineSpec) -> None:
        self._pool = pool
        self._spec = replace(spec, threads=worker_threads(spec.settings, "encode"))
        self._refs: list[GroupRef] = []

    def facts(self) -> dict[str, Any]:
        """What the driver needs to know of the backbone."""
        return self._pool.call_each([(self._spec, (), "facts", ())])[0]

    def install(self, refs: Sequence[GroupRef]) -> None:
        """Send these groups along with every later call."""
        known = {ref.name for ref in self._refs}
        self._refs += [ref for ref in refs if ref.name not in known]

    def features(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Signature features of some rows, see `Engine.features`."""
        return self._spread(rows, lambda part: ("features", (table, part)))

    def logits(
        self,
        table: str,
        rows: np.ndarray,
        function: str | None,
        classes: Sequence[str],
        templates: Sequence[str],
    ) -> np.ndarray:
        """Logits of some rows, see `Engine.logits`."""
        return self._spread(
            rows, lambda part: ("logits", (table, part, function, classes, templates))
        )

    def dense(
        self, table: str, rows: np.ndarray, task: str, kind: str, classes: int
    ) -> dict[str, np.ndarray]:
        """Sums of a dense task's metric over some rows, see `Engine.dense`."""
        found = self._answers(rows, lambda part: ("dense", (table, part, task, kind, classes)))
        return {name: sum(sums[name] for sums in found) for name in found[0]}

    def _spread(
        self, rows: np.ndarray, request: Callable[[np.ndarray], tuple[str, tuple[Any, ...]]]
    ) -> np.ndarray:
        return np.concatenate(self._answers(rows, request))

    def _answers(
        self, rows: np.ndarray, request: Callable[[np.ndarray], tuple[str, tuple[Any, ...]]]
    ) -> list[Any]:
        parts = [part for part in np.array_split(rows, self._pool.size) if len(part)]
        calls = [(self._spec, tuple(self._refs), *request(part)) for part in parts]
        return self._pool.call_each(calls)


def worker_threads(settings: Settings, kind: str) -> int:
    """Threads of torch for one worker of a kind; 0 in the settings shares out all cores."""
    workers = getattr(settings.cluster, kind)
    return workers.threads or max(1, (os.cpu_count() or 1) // max(1, workers.num_workers))


def _use_threads(settings: Settings) -> None:
    import torch

    torch.set_num_threads(worker_threads(settings, "encode"))
