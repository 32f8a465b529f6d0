"""A small pool of encoder actors: forward passes for signatures and evaluation, on GPUs if any.

The pool has the methods of `pipeline.learned.engine.Engine`. Rows are cut into contiguous
pieces, one an actor. An actor that dies is restarted by Ray and its call repeated: every call
carries all that it needs, so a fresh actor answers like the old one.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import ray

from archipelago.pipeline.closedform import CalibrationRows, Sums
from archipelago.pipeline.learned.engine import Engine, EngineSpec, merged, parts_of
from archipelago.pipeline.learned.passed import FrozenPasses
from archipelago.pipeline.methods import Function
from archipelago.pipeline.model.kernels import Kernels, choose, resolve_device
from archipelago.pipeline.records import ClassList
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder

log = logging.getLogger(__name__)
T = TypeVar("T")


class Encoder:
    """Body of one actor: an engine per specification, built when first asked for."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def kernels(self, settings: Settings) -> Kernels:
        """The kernels that suit this machine."""
        backbone = settings.backbone
        device = resolve_device(settings.cluster.device)
        return choose(backbone.attention, backbone.precision, device, backbone.inference)

    def call(
        self, spec: EngineSpec, refs: Sequence[GroupRef], method: str, args: tuple[Any, ...]
    ) -> Any:
        """Run one method of the engine that `spec` describes, with these groups installed."""
        key = _key(spec)
        if key not in self._engines:
            self._engines[key] = Engine(spec)
        engine = self._engines[key]
        engine.install(refs)
        return getattr(engine, method)(*args)

    def forget(self, spec: EngineSpec) -> None:
        """Let go of an engine, its functions and activations."""
        self._engines.pop(_key(spec), None)


def _key(spec: EngineSpec) -> str:
    return spec.settings.model_dump_json() + spec.run


class EncoderPool:
    """Encoders of a run; with `cluster.encode.num_workers=0` one in this process.

    Use as a context manager: the actors are gone when it ends. `passed` outlives it where given:
    what passes of frozen CLIP gave, for this run, its references and others on the same images.
    """

    def __init__(self, settings: Settings, passed: FrozenPasses | None = None) -> None:
        workers = settings.cluster.encode
        self.passed = passed or FrozenPasses()
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

    def kernels(self, settings: Settings) -> Kernels:
        """Kernels that suit the first encoder's machine."""
        if self._local is not None:
            return self._local.kernels(settings)
        return self._actors[0].kernels.remote(settings).future().result()

    def engine(self, spec: EngineSpec) -> PooledEngine:
        """An engine-like view of the pool for one method's functions."""
        return PooledEngine(self, spec)

    def forget(self, spec: EngineSpec) -> None:
        """Let go of what a run that is over has left in the encoders."""
        if self._local is not None:
            self._local.forget(spec)
        for actor in self._actors:
            actor.forget.remote(spec).future().result()

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

    @cached_property
    def _bits(self) -> tuple[str, ...]:
        """What decides the bits of frozen features beside the images."""
        settings, stored = self._spec.settings, RunFolder(self._spec.run, read_only=True)
        if not stored.exists():
            return (self._spec.run,)
        run = stored.read()
        first = settings.method.name if settings.identifier.depths == "trunk" else ""
        return (
            run["backbone"]["sha256"],
            str(run["backbone"].get("basis")),
            str(self._spec.kernels),
            first,
            settings.identifier.depths,
            str(settings.identifier.mirror),
            str(settings.evaluation.batch_size),
            str((self._spec.threads, self._pool.size)),
        )

    def _once(self, kind: str, table: str, rows: Sequence[np.ndarray], make: Callable[[], T]) -> T:
        """What frozen CLIP gives for rows of a table, from an earlier pass if there was one."""
        chosen = [hashlib.sha256(np.asarray(part, np.int64).tobytes()).digest() for part in rows]
        return self._pool.passed.get(kind, (table, *chosen, *self._bits), make)

    def facts(self) -> dict[str, Any]:
        """What the driver needs to know of the backbone."""
        return self._pool.call_each([(self._spec, (), "facts", ())])[0]

    def install(self, refs: Sequence[GroupRef]) -> None:
        """Send these groups along with every later call."""
        new = {ref.name for ref in refs}  # a later record of a stage replaces the earlier one
        self._refs = [ref for ref in self._refs if ref.name not in new] + list(refs)

    def raw_rows(self, table: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw signature and CLIP features of some rows, see `Engine.raw_rows`."""
        return self._pairs(rows, "raw_rows", table)

    def look(self, table: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compact and CLIP features of some rows, see `Engine.look`."""
        return self._once("look", table, [rows], lambda: self._pairs(rows, "look", table))

    def _pairs(self, rows: np.ndarray, name: str, table: str) -> tuple[np.ndarray, np.ndarray]:
        found = self._answers(rows, lambda part: (name, (table, part)))
        return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])

    def statistics(
        self, table: str, rows: np.ndarray, classes: int, held: np.ndarray | None = None
    ) -> tuple[Sums, CalibrationRows]:
        """Sums and calibration rows of a split: formed in the encoders, merged here in order."""
        chosen = [rows, np.array([classes]), *([] if held is None else [held])]
        return self._once(
            "statistics", table, chosen, lambda: self._statistics(table, rows, classes, held)
        )

    def _statistics(
        self, table: str, rows: np.ndarray, classes: int, held: np.ndarray | None
    ) -> tuple[Sums, CalibrationRows]:
        parts = parts_of(rows)
        found: list[tuple[Sums, CalibrationRows]] = []
        for start in range(0, len(parts), self._pool.size):
            calls = [
                (self._spec, tuple(self._refs), "statistics", (table, part, classes, held))
                for part in parts[start : start + self._pool.size]
            ]
            found = [merged([*found, *self._pool.call_each(calls)])]
        return found[0]

    def features(self, table: str, rows: np.ndarray, function: Function) -> np.ndarray:
        """Features of some rows under a function, see `Engine.features`."""
        found = self._answers(rows, lambda part: ("features", (table, part, function)))
        return np.concatenate(found)

    def texts(self, listed: ClassList, function: Function | None) -> np.ndarray:
        """Class features, see `Engine.texts`."""
        call = (self._spec, tuple(self._refs), "texts", (listed, function))
        return self._pool.call_each([call])[0]

    def dense(
        self, table: str, rows: np.ndarray, task: str, kind: str, classes: int
    ) -> dict[str, np.ndarray]:
        """Sums of a dense task's metric over some rows, see `Engine.dense`."""
        found = self._answers(rows, lambda part: ("dense", (table, part, task, kind, classes)))
        return {name: sum(sums[name] for sums in found) for name in found[0]}

    def _answers(
        self, rows: np.ndarray, request: Callable[[np.ndarray], tuple[str, tuple[Any, ...]]]
    ) -> list[Any]:
        parts = [part for part in np.array_split(rows, self._pool.size) if len(part)]
        calls = [(self._spec, tuple(self._refs), *request(part)) for part in parts]
        return self._pool.call_each(calls)


def worker_threads(settings: Settings, kind: str) -> int:
    """Threads of torch for one worker of a kind; 0 in the settings shares out all cores."""
    workers = getattr(settings.cluster, kind)
    count = workers.num_workers * getattr(workers, "lanes", 1)
    return workers.threads or max(1, (os.cpu_count() or 1) // max(1, count))
