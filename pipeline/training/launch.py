"""Run a stage where the cluster settings say: in this process, or on Ray Train workers."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.store import Folder, RunFolder
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.training import checkpoints
from archipelago.pipeline.training.entry import enter
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.spec import (
    CLASSES,
    FACTS,
    GROUP,
    PROBE,
    REFUSED,
    Outcome,
    StageSpec,
    refusals,
    stage_folder,
)
from archipelago.pipeline.training.stage import run_stage

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)


def train_stage(spec: StageSpec) -> Outcome:
    """Train one stage and bring its outcome home.

    A previous attempt's last complete checkpoint is continued from.

    Raises:
        RuntimeError: the workers failed more often than `cluster.max_failures`.
        UserError: no attempt could succeed: training diverged, or a setting does not fit.
    """
    run = RunFolder(spec.run, read_only=True)
    workers = spec.settings.cluster.train.num_workers
    folder = stage_folder(run, spec)
    previous = checkpoints.newest(folder)
    spec = replace(spec, resume=None if previous is None else previous.uri)
    if previous is not None:
        log.info("stage %d %s: continues from %s", spec.stage, spec.name, previous.shown())
    final = _in_process(spec, folder) if workers == 0 else _on_ray(spec, folder)
    return read_outcome(final)


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


def _in_process(spec: StageSpec, folder: Folder) -> Folder:
    attempt = folder.child(f"attempt-{spec.attempt}")
    last: list[Folder] = []

    def save(metrics: dict[str, Any], state: TrainingState | None, outcome: Outcome | None) -> None:
        if state is None:
            return
        name = "final" if outcome is not None else f"checkpoint-{state.step:06d}"
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary)
            checkpoints.save(local, state)
            if outcome is not None:
                outcome.save(local)
            target = attempt.child(name)
            for file in sorted(local.iterdir(), key=lambda f: f.name == checkpoints.FACTS):
                target.write(file.name, file.read_bytes())
        last[:] = [attempt.child(name)]

    resume = None if spec.resume is None else checkpoints.restore(Folder(spec.resume))
    run_stage(spec, resume=resume, save=save)
    return last[0]


def _on_ray(spec: StageSpec, folder: Folder) -> Folder:
    import ray.train as rt
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = spec.settings.cluster
    workers = cluster.train
    resources: dict[str, float] = {"CPU": workers.num_cpus}
    if workers.num_gpus:
        resources["GPU"] = workers.num_gpus
    if workers.memory_gib:
        resources["memory"] = workers.memory_gib * 2**30
    trainer = TorchTrainer(
        enter,
        train_loop_config=spec.plain(),
        torch_config=TorchConfig(timeout_s=cluster.timeout_s),
        scaling_config=rt.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=rt.RunConfig(
            name=f"attempt-{spec.attempt}",
            storage_path=folder.uri,
            failure_config=rt.FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=max(1, cluster.max_failures),  # type: ignore[call-arg]
            ),
            checkpoint_config=rt.CheckpointConfig(num_to_keep=2),
            logging_config=rt.LoggingConfig("WARNING"),
        ),
    )
    try:
        result = _fit(trainer)
    except (rt.WorkerGroupError, rt.ControllerError) as error:
        _refuse(spec)
        reason = str(error).strip().splitlines()[-1]
        raise RuntimeError(
            f"stage {spec.stage} {spec.name}: the workers failed"
            f" {cluster.max_failures + 1} times, last: {reason}"
        ) from error
    _refuse(spec)
    checkpoint = result.checkpoint
    if checkpoint is None:
        raise RuntimeError(f"stage {spec.stage} {spec.name}: no checkpoint was reported")
    return Folder(checkpoint.path, checkpoint.filesystem)


def _refuse(spec: StageSpec) -> None:
    """Raise what a worker found that no other attempt could mend."""
    reasons = refusals(spec)
    if reasons.exists(REFUSED):
        raise UserError(f"stage {spec.stage} {spec.name}: {reasons.read_json(REFUSED)}")


def _fit(trainer: TorchTrainer) -> Result:
    """`trainer.fit()` on a thread of its own, so that a signal ends the wait for it.

    On the main thread Ray would wait deaf to Python's signal handlers, and replace that of SIGINT.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(trainer.fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="fit", daemon=True).start()
    return future.result()
