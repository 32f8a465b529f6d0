"""One rank under Ray Train: stage after stage, its reports, and where it goes on after a death."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from typing import Any

import ray
import ray.train as rt
import torch
from ray.train.torch import get_device
from ray.util.metrics import Gauge

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import Adapter
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.training import checkpoints
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.spec import Outcome, StageSpec, stage_folder
from archipelago.pipeline.training.stage import run_stage
from archipelago.pipeline.training.stage_queue import Ending

log = logging.getLogger(__name__)


def work(queue: Any) -> None:
    """Train one stage after another on this rank, as the queue gives them.

    What no other attempt could mend ends all of it without an error, since Ray Train would try an
    error again: the reason goes to the driver.

    Args:
        queue: handle of a `StageQueue`.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO
    logging.getLogger("archipelago").setLevel(logging.INFO)
    rank = rt.get_context().get_world_rank()
    number: int | None = None
    while (taken := ray.get(queue.take.remote(number))) is not None:
        number, plain = taken
        try:
            _train(StageSpec.of(plain))
        except UserError as error:
            ray.get(queue.close.remote(Ending("refused", str(error))))
            return
        gc.collect()  # the stage's activations and weights, before the next one's come
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # encoders may share the card meanwhile
        ray.get(queue.finished.remote(number, rank))


def _train(spec: StageSpec) -> None:
    context = rt.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if spec.kernels.device.startswith("cuda"):
        spec = replace(spec, kernels=replace(spec.kernels, device=str(get_device())))
    gauges = _Gauges(spec) if rank == 0 else None
    keep = checkpoints.Keeper(spec)

    def save(metrics: dict[str, Any], state: TrainingState | None, outcome: Outcome | None) -> None:
        if gauges is not None:
            gauges.set(metrics)
            keep(metrics, state, outcome)
        rt.report(metrics, checkpoint=None)

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
