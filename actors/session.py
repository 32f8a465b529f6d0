"""What a run holds while it works: Ray, the run's lock, decoded images, encoders and tracking.

A session is a context manager: whatever ends it, the lock is released, the encoders are gone, and
the journal says how it ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from typing import Any

import ray

from archipelago.actors.arguments import cache_dir, without_words
from archipelago.actors.basis import basis_of_atlas
from archipelago.actors.cluster import connect, uses_ray
from archipelago.actors.encoders import EncoderPool, worker_threads
from archipelago.actors.identify import IdentifierPool, in_pool
from archipelago.actors.logs import show_logs
from archipelago.actors.preflight import check_batch, check_data, check_resources
from archipelago.actors.publishing import publish_newest
from archipelago.actors.stopping import Signals
from archipelago.actors.versions import versions
from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.config import redacted
from archipelago.pipeline.errors import Stopped
from archipelago.pipeline.evaluation.joint import dense_figure
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers import ScoreCache
from archipelago.pipeline.identifiers.basis import find_basis, load_basis
from archipelago.pipeline.identifiers.scorer import Scorer, check_driver
from archipelago.pipeline.learned.engine import EngineSpec
from archipelago.pipeline.learned.passed import FrozenPasses
from archipelago.pipeline.learner import Learner
from archipelago.pipeline.methods import method_class, method_options
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.model.tokens import tokenizer_of
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.records.basis import keep_basis, read_basis
from archipelago.pipeline.settings import Settings, TrackingSettings
from archipelago.pipeline.store import RunFolder, names
from archipelago.pipeline.streams import open_stream, prepare
from archipelago.pipeline.streams.prompts import check_prompts
from archipelago.pipeline.tracking import Tracker

log = logging.getLogger("archipelago")

SHOWN = ("mtil_identified", "mtil_given")  # the first that was measured is shown by stage


class Session:
    """Everything a run needs, for as long as it runs.

    Attributes:
        run: the locked run folder.
        learner: the method at work, after `__enter__`.
        tracker: projects the run folder into MLflow.
    """

    learner: Learner

    def __init__(
        self,
        settings: Settings,
        parent: Session | None = None,
        name: str | None = None,
        passed: FrozenPasses | None = None,
    ) -> None:
        method_options(settings.method)
        self._passed = passed
        self.settings = settings
        self.parent = parent
        if parent is None:
            assert settings.run_dir is not None
            self.run = RunFolder(settings.run_dir)
        else:
            self.run = parent.run.reference(name or settings.method.name)
        self.tracker = Tracker(self.run, self._tracking())
        self._stack = contextlib.ExitStack()
        self._signals = Signals()  # that ask this run to stop

    def _tracking(self) -> TrackingSettings:
        """Where this run is tracked: a reference in the same place as its parent."""
        return self.settings.tracking if self.parent is None else self.parent._beside_tracking()

    def _beside_tracking(self) -> TrackingSettings:
        where = self.tracker.location
        if where is None:
            return self.settings.tracking
        place = {"uri": where.uri, "artifacts": where.artifacts}
        return self.settings.tracking.model_copy(update=place)

    def reference(self, settings: Settings, name: str | None = None) -> Session:
        """A session of another method on this session's stream, encoders and lock.

        `name` is that of its folder, by default the method's.
        """
        return Session(settings, self, name)

    # -- begin -------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        """Check, lock, connect, decode, and take up what is done already."""
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _begin(self) -> None:
        settings = self.settings
        if self.parent is None:
            show_logs()
            check_batch(settings)
            find_basis(settings.backbone)
            if self._looks:
                check_driver(settings.multimodal)
            dense = method_class(settings.method.name).dense
            self.domains = open_stream(settings.stream, settings.seed, dense)
            self._stack.enter_context(self.run.lock(wait_s=0))
            self._stack.enter_context(self._signals.listening())
            pooled = self._looks and in_pool(settings)
            if connect(settings, pooled):
                self._stack.callback(ray.shutdown)
                self._signals.listen()  # Ray has put its own handler there
            if uses_ray(settings, pooled):
                check_resources(settings.cluster, pooled)
            self.pool = self._stack.enter_context(EncoderPool(settings, self._passed))
            self.scorer = self._scorer()
        else:
            self.domains, self.pool = self.parent.domains, self.parent.pool
            self.scorer = self.parent.scorer
        settings = self.settings = without_words(settings, self.domains)
        tasks = [domain.name for domain in self.domains]
        stages = stages_of(settings, tasks)
        self.run.journal.append(
            "run-started", pid=os.getpid(), host=socket.gethostname(), job=_job_id()
        )
        stored = self.run.read() if self.run.exists() else None
        kernels = self._kernels(stored)
        self._spec = EngineSpec(settings, self.run.uri, kernels)
        engine = self.pool.engine(self._spec)
        facts = engine.facts()
        basis = self._basis(engine, int(facts["image_size"]), tasks)
        document = self.run.open_run(
            redacted(settings),
            {
                "backbone": {**facts, "basis": basis.digest},
                "stream": {"tasks": tasks, "stages": [list(stage.tasks) for stage in stages]},
                "kernels": kernels.asdict(),
                "versions": versions(),
                "tracking": {},
            },
        )
        log.info(
            "%s with %s on %s: %s attention, %s",
            settings.method.name,
            facts["name"],
            kernels.device,
            document["kernels"]["attention"],
            document["kernels"]["precision"],
        )
        if self.parent is None:
            check_prompts(self.domains, tokenizer_of(settings.backbone))
        prepared = self._prepare(int(facts["image_size"]))
        check_data(self.run, settings, prepared, reference=self.parent is not None)
        self.learner = Learner(
            self.run,
            settings,
            prepared,
            engine,
            basis,
            float(facts["scale"]),
            kernels,
            score_cache=self._score_cache(),
            shared=self.parent.run if self.parent else None,
            threads=worker_threads(settings, "train"),
        )

    @property
    def _looks(self) -> bool:
        """Whether a multimodal model is needed."""
        multimodal = isinstance(self.settings.identifier, MultimodalSettings)
        return multimodal and method_class(self.settings.method.name).identifies()

    def _scorer(self) -> Scorer | None:
        """The multimodal model: in this process or in a pool of replicas."""
        if not self._looks:
            return None
        return self._stack.enter_context(IdentifierPool(self.settings)).scorer

    def _score_cache(self) -> ScoreCache | None:
        """The model with the scores that the run has already; its references share them."""
        if not self._looks or self.scorer is None:
            return None
        folder = (self.parent or self).run.folder.child("identifier")
        return ScoreCache(self.scorer, self.settings.multimodal, self.settings.seed, folder)

    def _kernels(self, stored: dict[str, Any] | None) -> Kernels:
        """The recorded choice of this run or of its parent, else what suits the machine."""
        if stored is not None and stored.get("kernels"):
            return self._resumed(stored["kernels"])
        if self.parent is not None:
            return self.parent.learner.kernels
        return self.pool.kernels(self.settings)

    def _resumed(self, facts: dict[str, str]) -> Kernels:
        """The recorded choice, on the kind of device that there is now."""
        now = self.pool.kernels(self.settings).device
        kernels = Kernels.stored(facts, now)
        if now.partition(":")[0] != facts["device"].partition(":")[0]:
            log.warning(
                "begun on %s, goes on on %s: what comes is no longer the same to the bit",
                facts["device"],
                now,
            )
        return kernels

    def _prepare(self, size: int) -> list[Any]:
        """Decode the stream, once for the run and its references."""
        if self.parent is not None:
            return self.parent.learner.domains
        settings, clock = self.settings, time.perf_counter()
        prepared = prepare(
            self.domains,
            size=size,
            run=self.run.uri,
            cache_dir=cache_dir(settings),
            cache_gib=settings.cluster.cache_gib,
            cluster=settings.cluster,
            max_pixels=settings.stream.max_pixels,
            use_ray=settings.cluster.data.num_workers > 0,
        )
        seconds = (time.perf_counter() - clock) / len(prepared)
        for domain in prepared:
            self.run.journal.append(
                "prepared",
                task=domain.name,
                counts=dict(domain.counts),
                quarantined=domain.quarantined,
                digests=dict(domain.digests),
                seconds=seconds,
            )
            if domain.quarantined:
                log.warning(
                    "%s: %d rows cannot be used, see quarantine-%s.parquet in the run folder",
                    domain.name,
                    domain.quarantined,
                    domain.name,
                )
        return prepared

    def _basis(self, engine: Any, size: int, tasks: list[str]) -> Basis:
        """What compact features are made with: that of the run, of the backbone, or a new one."""
        if self.run.folder.exists(names.BASIS):
            return read_basis(self.run)
        if self.parent is not None:
            basis = self.parent.learner.basis
        else:
            path = find_basis(self.settings.backbone)
            found = None if path is None else load_basis(path, self.settings.identifier)
            basis = found or basis_of_atlas(self.run, self.settings, engine, size, tasks)
        keep_basis(self.run, basis)
        return basis

    # -- while it runs -----------------------------------------------------------------------

    def publish(self) -> None:
        """Let the newest model answer at the running endpoint, where the settings ask for it."""
        if self.parent is None and self.learner.method.learns:
            publish_newest(self.run, self.settings)

    def show(self, record: dict[str, Any]) -> None:
        """One line about a measured stage, and the dashboard's gauges."""
        stage, name = record["stage"], self.settings.method.name
        accuracy = record["accuracy"]
        rows = [accuracy[name] for name in SHOWN]
        row = next((row for row in rows if any(value is not None for value in row)), rows[0])
        pairs = zip(record["tasks"], row, strict=True)
        line = ", ".join(
            f"{task} {accuracy:.1f}" if accuracy is not None else dense_figure(record, task)
            for task, accuracy in pairs
        )
        log.info("%s after stage %d (%s): %s", name, stage, record["task"], line)
        if not ray.is_initialized():
            return
        from ray.util.metrics import Gauge

        tags = {"method": name}
        figures = {"stage": stage}
        if record["identifier"]:
            figures["identifier_accuracy"] = record["identifier"]["accuracy"]
        for figure, value in figures.items():
            gauge = Gauge(f"archipelago_{figure}", description=figure, tag_keys=("method",))
            gauge.set(float(value), tags=tags)

    def finish(self) -> dict[str, Any]:
        """Write the final report with its pictures; all stages of the run are done."""
        self.run.journal.append("run-done")
        report = write_report(self.run)
        self.tracker.close()
        for other in self.run.references().values():
            Tracker(other, self._beside_tracking()).close()
        return report

    # -- end ---------------------------------------------------------------------------------

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Say how it ended, bring tracking up to date, let go of everything.

        Raises:
            Stopped: a signal came, whatever Ray made of the exception.
        """
        stopped = (self.parent or self)._signals.heard
        try:
            if kind is None and self.parent is not None:
                self.run.journal.append("run-done")
                write_report(self.run)
            elif stopped and self.run.exists():
                self.run.journal.append("stopped", reason=stopped)
                if self.parent is None:
                    self.tracker.close()
        finally:
            if self.parent is not None and kind is None:
                self.pool.forget(self._spec)
            self._stack.close()
        if stopped and isinstance(error, Exception):
            raise Stopped(stopped) from error


def _job_id() -> str | None:
    if not ray.is_initialized():
        return None
    return ray.get_runtime_context().get_job_id()
