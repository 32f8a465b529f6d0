"""Train stages where the cluster settings say: in this process, or on Ray Train workers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.settings import ClusterSettings
from archipelago.pipeline.store import Folder, RunFolder
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.training import checkpoints
from archipelago.pipeline.training.spec import (
    CLASSES,
    FACTS,
    FINAL,
    GROUP,
    PROBE,
    Outcome,
    StageSpec,
    attempt_folder,
    stage_folder,
)
from archipelago.pipeline.training.stage import run_stage
from archipelago.pipeline.training.workers import TrainWorkers, sweep

log = logging.getLogger(__name__)


class _Submitted(NamedTuple):
    """A stage on its way: who trains it, and as which of theirs."""

    workers: TrainWorkers
    number: int


class Trainer:
    """Trains stages, and keeps the workers for the next one; a context manager.

    With `cluster.train.lanes` several stages train side by side, each on workers of its own.
    """

    def __init__(self) -> None:
        self._lanes: list[TrainWorkers] = []
        self._submitted: dict[str, _Submitted] = {}  # by the folder of the attempt

    def start(self, cluster: ClusterSettings, run: str) -> None:
        """Let workers start that will be wanted soon, while other things are done.

        Args:
            cluster: what they ask for.
            run: address of the run folder.
        """
        if cluster.train.num_workers:
            self._lane(cluster, run)

    def __call__(self, spec: StageSpec) -> Outcome:
        """Train one stage and bring its outcome home.

        A previous attempt's last complete checkpoint is continued from.

        Raises:
            RuntimeError: the workers failed more often than `cluster.max_failures`.
            UserError: no attempt could succeed: training diverged, or a setting does not fit.
        """
        if spec.settings.cluster.train.num_workers:
            self._on_ray(spec)
        else:
            _in_process(_continued(spec))
        return read_outcome(attempt_folder(spec).child(FINAL))

    def ahead(self, spec: StageSpec) -> None:
        """Let workers that have nothing else to do train a stage that will be asked for later.

        In this process there is nobody to do it.
        """
        if spec.settings.cluster.train.num_workers:
            self._submit(spec)

    def _on_ray(self, spec: StageSpec) -> None:
        failures = spec.settings.cluster.max_failures
        for left in range(failures, -1, -1):
            submitted = self._submit(spec)
            ending = submitted.workers.wait(submitted.number)
            del self._submitted[attempt_folder(spec).uri]
            if ending.how == "done":
                return
            self._drop(submitted.workers)
            if ending.how == "refused":
                raise UserError(f"stage {spec.stage} {spec.name}: {ending.reason}")
            if ending.how == "failed" or not left:
                raise RuntimeError(
                    f"stage {spec.stage} {spec.name}: the workers failed {failures + 1} times,"
                    f" last: {ending.reason}"
                )
            log.warning("stage %d %s: %s; new ones start", spec.stage, spec.name, ending.reason)

    def _submit(self, spec: StageSpec) -> _Submitted:
        key = attempt_folder(spec).uri
        if key not in self._submitted:
            workers = self._lane(spec.settings.cluster, spec.run)
            self._submitted[key] = _Submitted(workers, workers.submit(_continued(spec)))
        return self._submitted[key]

    def _lane(self, cluster: ClusterSettings, run: str) -> TrainWorkers:
        """Workers with nothing to do, new ones while there may be more, else those with least."""
        if not self._lanes:
            sweep(RunFolder(run, read_only=True).folder)
        quiet = min(self._lanes, key=lambda workers: len(workers.pending), default=None)
        if quiet is None or (quiet.pending and len(self._lanes) < cluster.train.lanes):
            quiet = TrainWorkers(cluster, run)
            self._lanes.append(quiet)
        return quiet

    def _drop(self, workers: TrainWorkers) -> None:
        """Workers are lost, with all that they had still to do; who asks for it submits it anew."""
        self._lanes.remove(workers)
        self._submitted = {k: s for k, s in self._submitted.items() if s.workers is not workers}
        workers.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the workers go."""
        for workers in self._lanes:
            workers.close()
        self._lanes, self._submitted = [], {}


def train_stage(spec: StageSpec) -> Outcome:
    """Train one stage with workers of its own; see `Trainer`."""
    with Trainer() as trainer:
        return trainer(spec)


def read_outcome(folder: Folder) -> Outcome:
    """The outcome that lies beside a stage's last checkpoint.

    Raises:
        IntegrityError: the stage did not end there.
    """
    try:
        facts = json.loads(folder.read(FACTS))
        return Outcome(
            load(folder.read(GROUP), GROUP),
            load(folder.read(PROBE), PROBE),
            load(folder.read(CLASSES), CLASSES),
            facts,
        )
    except FileNotFoundError as error:
        raise IntegrityError(f"{folder.shown()} holds no finished stage") from error


def _continued(spec: StageSpec) -> StageSpec:
    """The stage from its last complete checkpoint on, where there is one."""
    previous = checkpoints.newest(stage_folder(RunFolder(spec.run, read_only=True), spec))
    if previous is None:
        return spec
    log.info("stage %d %s: continues from %s", spec.stage, spec.name, previous.shown())
    return replace(spec, resume=previous.uri)


def _in_process(spec: StageSpec) -> None:
    resume = None if spec.resume is None else checkpoints.restore(Folder(spec.resume))
    run_stage(spec, resume=resume, save=checkpoints.Keeper(spec))
