"""One rank of a stage under Ray Train: reports, gauges, and where it goes on after a death."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train as rt
import torch
from ray.train.torch import get_device
from ray.util.metrics import Gauge

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import Adapter
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.training import checkpoints
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.spec import REFUSED, Outcome, StageSpec, refusals, stage_folder
from archipelago.pipeline.training.stage import run_stage

log = logging.getLogger(__name__)


def work(config: dict[str, Any]) -> None:
    """Train the stage that `config` describes, on this rank.

    What no other attempt could mend ends it without an error, since Ray Train would try an error
    again: the reason is stored for the driver, and for ranks that start anew.
    """
    spec = StageSpec.of(config)
    reasons = refusals(spec)
    if reasons.exists(REFUSED):
        return
    try:
        _train(spec)
    except UserError as error:
        reasons.write_json(REFUSED, str(error))


def _train(spec: StageSpec) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO
    logging.getLogger("archipelago").setLevel(logging.INFO)
    context = rt.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if spec.kernels.device.startswith("cuda"):
        spec = replace(spec, kernels=replace(spec.kernels, device=str(get_device())))
    gauges = _Gauges(spec) if rank == 0 else None

    def save(metrics: dict[str, Any], state: TrainingState | None, outcome: Outcome | None) -> None:
        if rank != 0:
            rt.report(metrics, checkpoint=None)
            return
        if gauges is not None:
            gauges.set(metrics)
        with tempfile.TemporaryDirectory() as temporary:
            if state is not None:
                checkpoints.save(Path(temporary), state)
            if outcome is not None:
                outcome.save(Path(temporary))
            rt.report(metrics, checkpoint=rt.Checkpoint.from_directory(temporary))

    run_stage(
        spec,
        rank=rank,
        world=world,
        resume=_resume(spec),
        wrap=_data_parallel if world > 1 else (lambda adapter: adapter),
        save=save,
    )


def _resume(spec: StageSpec) -> TrainingState | None:
    """The newest complete checkpoint of this or an earlier attempt.

    Looked up in storage: what a worker reported just before it died is not in Ray's records.
    """
    newest = checkpoints.newest(stage_folder(RunFolder(spec.run, read_only=True), spec))
    if newest is None:
        return None
    state = checkpoints.restore(newest)
    if newest.uri != spec.resume and rt.get_context().get_world_rank() == 0:
        log.warning(
            "stage %d %s: a worker was lost, goes on after step %d",
            spec.stage,
            spec.name,
            state.step,
        )
    return state


def _data_parallel(adapter: Adapter) -> torch.nn.Module:
    return torch.nn.parallel.DistributedDataParallel(adapter)


class _Gauges:
    """What the Ray dashboard shows of a running stage."""

    def __init__(self, spec: StageSpec) -> None:
        tags = {"task": spec.name, "method": spec.settings.method.name}
        self._gauges = {}
        for key, name, about in (
            ("loss", "archipelago_loss", "Training loss of the stage"),
            ("images_per_second", "archipelago_images_per_second", "Training throughput"),
            ("held_out_accuracy", "archipelago_held_out_accuracy", "Percent, held-out fold"),
            ("step", "archipelago_step", "Optimisation step of the stage"),
        ):
            gauge = Gauge(name, description=about, tag_keys=tuple(tags))
            gauge.set_default_tags(tags)
            self._gauges[key] = gauge

    def set(self, metrics: dict[str, Any]) -> None:
        """Publish the figures of one report."""
        for key, gauge in self._gauges.items():
            if key in metrics:
                gauge.set(float(metrics[key]))
