"""One stage on one worker: gather its data, train, let neighbours prove themselves, export.

`run_stage` is the same function in process and on every rank of Ray Train.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.methods.base import Adapter, Method, Neighbour, StageContext, build_method
from pipeline.model.backbone import load_backbone
from pipeline.model.kernels import Kernels
from pipeline.settings import Settings
from pipeline.store import GroupRef, RunFolder
from pipeline.store.tensors import dump, load
from pipeline.streams import ImageTable, PreparedDomain, stratified_fold
from pipeline.training.loop import (
    StageData,
    TrainingState,
    class_features,
    held_out,
    planned_steps,
    text_activations,
    train,
)
from pipeline.training.trunk import TrunkCache
from pipeline.training.views import Views

log = logging.getLogger(__name__)

GROUP, PROBE, CLASSES, FACTS = (
    "group.safetensors", "probe.safetensors", "classes.safetensors", "facts.json",
)  # fmt: skip
PROBES = 8
TEMPERATURES = np.geomspace(0.25, 4.0, 33)


@dataclass(frozen=True)
class StageSpec:
    """What a worker needs to know; small, and safe to send anywhere."""

    settings: Settings
    run: str
    kernels: Kernels
    stage: int
    domain: PreparedDomain
    earlier: tuple[GroupRef, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    attempt: int = 1
    threads: int = 0
    resume: str | None = None

    def plain(self) -> dict[str, Any]:
        """As plain data, so that who only passes it on need not import what it is made of."""
        return {**asdict(self), "settings": self.settings.model_dump(mode="json")}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> StageSpec:
        """Inverse of `plain`."""
        return cls(
            **{
                **plain,
                "settings": Settings.model_validate(plain["settings"]),
                "kernels": Kernels(**plain["kernels"]),
                "domain": PreparedDomain(**plain["domain"]),
                "earlier": tuple(GroupRef(**ref) for ref in plain["earlier"]),
                "neighbours": tuple(Neighbour(**n) for n in plain["neighbours"]),
            }
        )


@dataclass
class Outcome:
    """What rank 0 brings home: files of the group, and facts for the journal."""

    group: dict[str, torch.Tensor]
    probe: dict[str, torch.Tensor]
    classes: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write beside a checkpoint."""
        (folder / GROUP).write_bytes(dump(self.group))
        (folder / PROBE).write_bytes(dump(self.probe))
        (folder / CLASSES).write_bytes(dump({"classes": self.classes}))
        (folder / FACTS).write_text(json.dumps(self.facts))


Save = Callable[[dict[str, Any], TrainingState | None, Outcome | None], None]


def stage_folder(run: RunFolder, spec: StageSpec) -> Any:
    """Where all attempts of a stage keep their checkpoints until the stage is done."""
    return run.folder.child(f"train/{spec.stage:03d}-{spec.domain.name}")


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
    data, train_rows = load_data(spec, method, rank, world)
    loaded = time.perf_counter()
    curve: list[dict[str, Any]] = []
    steps = planned_steps(spec.settings.training, len(train_rows))

    def report(metrics: dict[str, Any], state: TrainingState | None) -> None:
        if rank == 0:
            log.info(
                "stage %d %s: step %d/%d, loss %.3f, held-out %.1f %%, %.0f images/s",
                spec.stage, spec.domain.name, metrics["step"], steps,
                metrics["loss"], metrics["held_out_accuracy"], metrics["images_per_second"],
            )  # fmt: skip
        curve.append(metrics)
        save(metrics, state, None)

    state = train(
        method, adapter, data, stage=spec.stage, steps=steps, rank=rank, world=world,
        wrap=wrap, resume=resume, report=report,
    )  # fmt: skip
    trained = time.perf_counter()
    gains = _prune(method, adapter, data, rank, world)
    outcome = _outcome(spec, method, adapter, data, train_rows) if rank == 0 else None
    if outcome is not None:
        trunk = data.trunk.seconds
        outcome.facts |= {
            "best_step": state.best_step,
            "held_out_accuracy": 100.0 * state.best_accuracy,
            "loss": curve[-1]["loss"] if curve else None,
            "images_per_second": curve[-1]["images_per_second"] if curve else None,
            "curve": curve,
            "gains": gains,
            "neighbours": adapter.borrowed(),
            "seconds": {
                "load": loaded - clock,
                "trunk": trunk,
                "steps": trained - loaded - trunk,
                "worker": time.perf_counter() - clock,
            },
        }
    save({"step": state.step, "done": True}, state, outcome)


def build(spec: StageSpec) -> tuple[Method, Adapter]:
    """The method with what the stage needs of earlier groups, and a fresh adapter."""
    backbone = load_backbone(spec.settings.backbone, spec.kernels.device, spec.kernels)
    method = build_method(backbone, spec.settings)
    run = RunFolder(spec.run, read_only=True)
    for ref in spec.earlier:
        method.install(ref.name, load(run.groups.read(ref, GROUP), ref.name))
    context = StageContext(spec.stage, spec.domain.name, spec.neighbours)
    return method, method.adapter(context)


def load_data(
    spec: StageSpec, method: Method, rank: int, world: int
) -> tuple[StageData, np.ndarray]:
    """This rank's rows, the held-out fold and the prompts; also all training rows."""
    settings, domain, backbone = spec.settings, spec.domain, method.backbone
    table = ImageTable.open(domain.tables["train"])
    rows, held = stratified_fold(table.labels, settings.stream.held_out, settings.seed, domain.name)
    mine = rows[rank::world]
    views = Views(settings.training, settings.seed, domain.name, len(table))
    first_image, first_text = method.first_blocks
    options = settings.training

    def cache(chosen: np.ndarray) -> TrunkCache:
        return TrunkCache(
            backbone, first_image, table.images, chosen, views, options.views, options.cache_gib
        )

    text = text_activations(backbone, first_text, list(domain.classes), list(domain.templates))
    data = StageData(
        cache(mine),
        torch.from_numpy(table.labels[mine].copy()),
        cache(held).view(None),
        torch.from_numpy(table.labels[held].copy()),
        text,
    )
    return data, rows


def _prune(
    method: Method, adapter: Adapter, data: StageData, rank: int, world: int
) -> dict[str, float]:
    """Drop neighbours without which the held-out fold does as well; gains in points."""
    gains: dict[str, float] = {}
    floor = method.settings.method.neighbours.min_gain
    kept = adapter.optional_neighbours()
    if not kept:
        return gains
    reference, _ = held_out(method.backbone, adapter, data, rank, world)
    dropped: list[str] = []
    for task in kept:
        with adapter.without([*dropped, task]):
            accuracy, _ = held_out(method.backbone, adapter, data, rank, world)
        gains[task] = 100.0 * (reference - accuracy)
        if gains[task] <= floor:
            dropped.append(task)
            reference = accuracy
    adapter.keep_neighbours([task for task in kept if task not in dropped])
    return gains


@torch.no_grad()
def _outcome(
    spec: StageSpec, method: Method, adapter: Adapter, data: StageData, rows: np.ndarray
) -> Outcome:
    backbone = method.backbone
    table = ImageTable.open(spec.domain.tables["train"])
    probes = rows[np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int)]
    images = table.images(probes)
    with backbone.kernels.exact():
        u_CF = class_features(adapter, data.text)
        x_BLD = method.trunk(backbone.normalise(images))
        reference = backbone.logit_scale * adapter.image(x_BLD) @ u_CF.T
        parts = [
            backbone.logit_scale * adapter.image(x.to(backbone.device, torch.float32)) @ u_CF.T
            for x in data.held_x.split(128)
        ]
    held = torch.cat(parts).cpu()
    losses = [F.cross_entropy(held / float(t), data.held_y).item() for t in TEMPERATURES]
    group = adapter.export()
    return Outcome(
        group,
        {
            "images": torch.from_numpy(images.copy()),
            "labels": torch.from_numpy(table.labels[probes].copy()),
            "logits": reference.cpu(),
        },
        u_CF.cpu(),
        {
            "temperature": float(TEMPERATURES[int(np.argmin(losses))]),
            "parameters": sum(t.numel() for k, t in group.items() if t.is_floating_point()),
        },
    )
