"""A run at work: its folder, its learner, its tracking, on resources that others may share.

A session is a context manager: whatever ends it, the journal says how.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

import ray

from archipelago.actors.arguments import without_words
from archipelago.actors.basis import basis_of_atlas
from archipelago.actors.encoders import worker_threads
from archipelago.actors.preflight import check_data
from archipelago.actors.publishing import publish_newest
from archipelago.actors.resources import Resources, looks
from archipelago.actors.versions import versions
from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.config import redacted
from archipelago.pipeline.evaluation.joint import dense_figure
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.identifiers import ScoreCache
from archipelago.pipeline.identifiers.basis import find_basis, load_basis
from archipelago.pipeline.learned.engine import EngineSpec
from archipelago.pipeline.learner import Learner
from archipelago.pipeline.methods import method_options
from archipelago.pipeline.model.tokens import tokenizer_of
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.records.basis import keep_basis, read_basis
from archipelago.pipeline.settings import Settings, TrackingSettings
from archipelago.pipeline.store import names
from archipelago.pipeline.streams import PreparedDomain
from archipelago.pipeline.streams.prompts import check_prompts
from archipelago.pipeline.tracking import Tracker

log = logging.getLogger("archipelago")

SHOWN = ("mtil_identified", "mtil_given")  # the first that was measured is shown by stage


class Session:
    """One run, or a reference method beside it.

    Attributes:
        main: the run that this one is a reference of; None = it is the main one.
        run: its folder, locked by the resources.
        learner: the method at work, after `__enter__`.
        tracker: projects the run folder into MLflow.
    """

    learner: Learner

    def __init__(
        self,
        resources: Resources,
        settings: Settings | None = None,
        main: Session | None = None,
        name: str | None = None,
        prepared: Sequence[PreparedDomain] | None = None,
    ) -> None:
        """A run; `reference` makes those beside it.

        Args:
            resources: open.
            settings: of the run; None = those that the resources are for.
            main: the run that this one stands beside.
            name: of its folder there.
            prepared: domains of its own; None = the stream.
        """
        self.resources, self.main, self._prepared = resources, main, prepared
        self.settings = settings or resources.settings
        method_options(self.settings.method)
        if main is None:
            self.run, tracking = resources.run, self.settings.tracking
        else:
            self.run = main.run.reference(name or self.settings.method.name)
            tracking = main._beside_tracking()
        self.tracker = Tracker(self.run, tracking)

    def _beside_tracking(self) -> TrackingSettings:
        """Where references are tracked: in the same place."""
        where = self.tracker.location
        if where is None:
            return self.settings.tracking
        place = {"uri": where.uri, "artifacts": where.artifacts}
        return self.settings.tracking.model_copy(update=place)

    def reference(
        self,
        settings: Settings,
        name: str | None = None,
        prepared: Sequence[PreparedDomain] | None = None,
    ) -> Session:
        """A session of another method on the same resources.

        `name` is that of its folder, by default the method's; `prepared` are domains of its own.
        """
        return Session(self.resources, settings, self, name, prepared)

    # -- begin -------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        """Open the run, decode, and take up what is done already."""
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _begin(self) -> None:
        resources = self.resources
        settings = self.settings = without_words(self.settings, resources.domains)
        tasks = [domain.name for domain in self._prepared or resources.domains]
        stages = stages_of(settings, tasks)
        self.run.journal.append(
            "run-started", pid=os.getpid(), host=socket.gethostname(), job=_job_id()
        )
        stored = self.run.read() if self.run.exists() else None
        kernels = resources.kernels(None if stored is None else stored.get("kernels"))
        self._spec = EngineSpec(settings, self.run.uri, kernels)
        engine = resources.pool.engine(self._spec)
        facts = engine.facts()
        size = int(facts["image_size"])
        basis = self._basis(engine, size, tasks)
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
        if self.main is None:
            check_prompts(resources.domains, tokenizer_of(settings.backbone))
        prepared = self._prepared or resources.prepared(size)
        check_data(self.run, settings, prepared, reference=self.main is not None)
        self.learner = Learner(
            self.run,
            settings,
            prepared,
            engine,
            basis,
            float(facts["scale"]),
            kernels,
            score_cache=self._score_cache(),
            shared=self.main.run if self.main and not self._prepared else None,
            threads=worker_threads(settings, "train"),
            trainer=resources.trainer,
        )

    def _score_cache(self) -> ScoreCache | None:
        """The model with the scores that the run has already; its references share them."""
        scorer = self.resources.scorer
        if not looks(self.settings) or scorer is None:
            return None
        folder = self.resources.run.folder.child("identifier")
        return ScoreCache(scorer, self.settings.multimodal, self.settings.seed, folder)

    def _basis(self, engine: Any, size: int, tasks: list[str]) -> Basis:
        """What compact features are made with: that of the run, of the backbone, or a new one."""
        if self.run.folder.exists(names.BASIS):
            return read_basis(self.run)
        if self.main is not None:
            basis = self.main.learner.basis
        else:
            path = find_basis(self.settings.backbone)
            found = None if path is None else load_basis(path, self.settings.identifier)
            basis = found or basis_of_atlas(self.run, self.settings, engine, size, tasks)
        keep_basis(self.run, basis)
        return basis

    # -- while it runs -----------------------------------------------------------------------

    def publish(self) -> None:
        """Let the newest model answer at the running endpoint, where the settings ask for it."""
        if self.main is None and self.learner.method.learns:
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
        """Say how it ended, and bring tracking up to date."""
        stopped = self.resources.signals.heard
        try:
            if kind is None and self.main is not None:
                self.run.journal.append("run-done")
                write_report(self.run)
            elif stopped and self.run.exists():
                self.run.journal.append("stopped", reason=stopped)
                if self.main is None:
                    self.tracker.close()
        finally:
            if self.main is not None and kind is None:
                self.resources.pool.forget(self._spec)


def _job_id() -> str | None:
    if not ray.is_initialized():
        return None
    return ray.get_runtime_context().get_job_id()
