"""One stage on one worker: gather its data, train, let neighbours prove themselves, export.

`run_stage` is the same function in process and on every rank of Ray Train.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import Adapter, Method, StageContext, build_method
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.pace import Pace, in_words
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.training.data import attach_heads, load_data, training_rows
from archipelago.pipeline.training.export import outcome_of
from archipelago.pipeline.training.loop import TrainingState, held_out, planned_steps, train
from archipelago.pipeline.training.objectives import Objective, judge
from archipelago.pipeline.training.spec import GROUP, Outcome, StageSpec

log = logging.getLogger(__name__)

Save = Callable[[dict[str, Any], TrainingState | None, Outcome | None], None]


def run_stage(
    spec: StageSpec,
    *,
    rank: int = 0,
    world: int = 1,
    resume: TrainingState | None = None,
    wrap: Callable[[Adapter], torch.nn.Module] = lambda adapter: adapter,
    save: Save = lambda metrics, state, outcome: None,
) -> None:
    """Train a stage; `save` is called alike on every rank, the last time with the outcome."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    clock = time.perf_counter()
    method, adapter = build(spec)
    objectives = load_data(spec, method, rank, world)
    attach_heads(adapter, objectives)
    method.begin(adapter, objectives, world)
    loaded = time.perf_counter()
    curve: list[dict[str, Any]] = []
    rows = [training_rows(spec, domain) for domain in spec.domains]
    steps = planned_steps(spec.settings.training, *rows)
    if len(objectives) > spec.settings.training.batch_size // world:
        raise UserError(
            f"training.batch_size: {spec.settings.training.batch_size} over {world} workers is less"
            f" than one image for each of the {len(objectives)} tasks of a stage; raise it"
        )

    def report(metrics: dict[str, Any], state: TrainingState | None) -> None:
        if rank == 0:
            images = (steps - metrics["step"]) * spec.settings.training.batch_size
            log.info(
                "stage %d %s: step %d/%d, loss %.3f, held-out %s, %.0f images/s, %s left",
                spec.stage,
                spec.name,
                metrics["step"],
                steps,
                metrics["loss"],
                _said(metrics),
                metrics["images_per_second"],
                in_words(images / max(metrics["images_per_second"], 1e-9)),
            )
        curve.append(metrics)
        save(metrics, state, None)

    before = resume.step if resume is not None else 0
    pace = Pace(f"stage {spec.stage} {spec.name}", steps, "steps", before, lines=False)
    state = train(
        method, adapter, objectives, seeding=spec.seeding, steps=steps, rank=rank, world=world,
        wrap=wrap, resume=resume, report=report, pace=pace if rank == 0 else None,
    )  # fmt: skip
    trained, until = time.perf_counter(), datetime.now(UTC)
    gains = prune(method, adapter, objectives, rank, world)
    outcome = outcome_of(spec, method, adapter, objectives) if rank == 0 else None
    if outcome is not None:
        trunk = sum({id(task.trunk): task.trunk.seconds for task in objectives}.values())
        outcome.facts |= {
            "best_step": state.best_step,
            **{"held_out_accuracy": None, "held_out_loss": None},
            **held_out(state, objectives),
            "loss": curve[-1]["loss"] if curve else None,
            "images_per_second": curve[-1]["images_per_second"] if curve else None,
            "curve": curve,
            "gains": gains,
            "neighbours": adapter.borrowed(),
            "until": until.isoformat(timespec="milliseconds"),
            "seconds": {
                "load": loaded - clock,
                "trunk": trunk,
                "steps": trained - loaded - trunk,
                "worker": time.perf_counter() - clock,
            },
        }
    save({"step": state.step, "done": True}, state, outcome)


def _said(metrics: dict[str, Any]) -> str:
    if "held_out_accuracy" in metrics:
        return f"{metrics['held_out_accuracy']:.1f} %"
    return f"loss {metrics['held_out_loss']:.3f}" if "held_out_loss" in metrics else "-"


def build(spec: StageSpec) -> tuple[Method, Adapter]:
    """The method with what the stage needs of earlier groups, and a fresh adapter."""
    backbone = load_backbone(spec.settings.backbone, spec.kernels.device, spec.kernels)
    method = build_method(spec.settings, None, backbone)
    run = RunFolder(spec.run, read_only=True)
    for ref in spec.earlier:
        method.install(ref.name, load(run.groups.read(ref, GROUP), ref.name))
    tasks = tuple(domain.name for domain in spec.domains)
    sizes = tuple(len(domain.classes) for domain in spec.domains)
    context = StageContext(spec.stage, spec.name, spec.neighbours, tasks, sizes)
    return method, method.adapter(context)


def prune(
    method: Method, adapter: Adapter, objectives: Sequence[Objective], rank: int, world: int
) -> dict[str, float]:
    """Drop neighbours without which the held-out fold does as well; gains in points."""
    gains: dict[str, float] = {}
    floor = method.settings.method.neighbours.min_gain
    kept = adapter.optional_neighbours()
    if not kept:
        return gains
    reference = judge(adapter, objectives, rank, world).score
    dropped: list[str] = []
    for task in kept:
        with adapter.without([*dropped, task]):
            accuracy = judge(adapter, objectives, rank, world).score
        gains[task] = 100.0 * (reference - accuracy)
        if gains[task] <= floor:
            dropped.append(task)
            reference = accuracy
    adapter.keep_neighbours([task for task in kept if task not in dropped])
    return gains
