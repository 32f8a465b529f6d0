"""One stage on one worker: gather its data, train, let neighbours prove themselves, export.

`run_stage` is the same function in process and on every rank of Ray Train.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from archipelago.pipeline.dense import stored_head
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import Adapter, Method, Neighbour, StageContext, build_method
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.model.watch import Watch, describe_experts
from archipelago.pipeline.pace import in_words
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder, GroupRef, RunFolder, names
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.streams import (
    DenseTable,
    ImageTable,
    PreparedDomain,
    Stage,
    stratified_fold,
)
from archipelago.pipeline.streams.folds import check_held_out
from archipelago.pipeline.training.dense import DenseObjective, dense_folds, dense_objectives
from archipelago.pipeline.training.loop import TrainingState, held_out, planned_steps, train
from archipelago.pipeline.training.objectives import (
    Classification,
    Objective,
    Prompts,
    class_features,
    judge,
)
from archipelago.pipeline.training.trunk import TrunkCache
from archipelago.pipeline.training.views import Views

log = logging.getLogger(__name__)

GROUP, PROBE = names.GROUP, names.PROBE
CLASSES, FACTS = "classes.safetensors", "facts.json"
REFUSED = "refused.json"  # of an attempt: why it cannot succeed
PROBES, DENSE_PROBES = 8, 2
TEMPERATURES = np.geomspace(0.25, 4.0, 33)


@dataclass(frozen=True)
class StageSpec:
    """What a worker needs to know; small, and safe to send anywhere."""

    settings: Settings
    run: str
    kernels: Kernels
    stage: int
    domains: tuple[PreparedDomain, ...]
    earlier: tuple[GroupRef, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    attempt: int = 1
    threads: int = 0
    resume: str | None = None

    @property
    def seeding(self) -> int:
        """What batch order and noise are seeded by: the names of the tasks, not their place."""
        return zlib.crc32("\n".join(domain.name for domain in self.domains).encode())

    @property
    def name(self) -> str:
        """Name of the stage."""
        return Stage(self.stage, tuple(domain.name for domain in self.domains)).name

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
                "domains": tuple(PreparedDomain(**domain) for domain in plain["domains"]),
                "earlier": tuple(GroupRef(**ref) for ref in plain["earlier"]),
                "neighbours": tuple(Neighbour(**n) for n in plain["neighbours"]),
            }
        )


@dataclass
class Outcome:
    """What rank 0 brings home: files of the group, and facts for the journal.

    Names in `probe` begin with `<task>/`; `classes` has a tensor a task.
    """

    group: dict[str, torch.Tensor]
    probe: dict[str, torch.Tensor]
    classes: dict[str, torch.Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write beside a checkpoint."""
        (folder / GROUP).write_bytes(dump(self.group))
        (folder / PROBE).write_bytes(dump(self.probe))
        (folder / CLASSES).write_bytes(dump(self.classes))
        (folder / FACTS).write_text(json.dumps(self.facts))


Save = Callable[[dict[str, Any], TrainingState | None, Outcome | None], None]


def stage_folder(run: RunFolder, spec: StageSpec) -> Folder:
    """Where all attempts of a stage keep their checkpoints until the stage is done."""
    return run.folder.child(f"train/{spec.stage:03d}-{spec.name}")


def refusals(spec: StageSpec) -> Folder:
    """Where workers of this attempt leave in `REFUSED` why it cannot succeed."""
    return stage_folder(RunFolder(spec.run, read_only=True), spec).child(f"attempt-{spec.attempt}")


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
    rows = [_rows(spec, domain) for domain in spec.domains]
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

    state = train(
        method, adapter, objectives, seeding=spec.seeding, steps=steps, rank=rank, world=world,
        wrap=wrap, resume=resume, report=report,
    )  # fmt: skip
    trained = time.perf_counter()
    gains = _prune(method, adapter, objectives, rank, world)
    outcome = _outcome(spec, method, adapter, objectives) if rank == 0 else None
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


def _folds(spec: StageSpec, domain: PreparedDomain) -> tuple[ImageTable, np.ndarray, np.ndarray]:
    """A task's training split: its table, the rows to train on, the held-out rows."""
    settings = spec.settings
    table = ImageTable.open(domain.tables["train"])
    rows, held = stratified_fold(
        table.labels, settings.stream.held_out, settings.seed, domain.name, table.groups
    )
    return table, rows, held


def attach_heads(adapter: Adapter, objectives: Sequence[Objective]) -> None:
    """Let the heads of the tasks that have one train with the group.

    Where no task reads class names, nothing that adapts them trains: data-parallel workers would
    wait for its gradients.
    """
    if not any(task.pooled for task in objectives):
        adapter.rest_text()
    heads = {str(number): task.head() for number, task in enumerate(objectives)}
    found = {number: head for number, head in heads.items() if head is not None}
    if found:
        adapter.heads = nn.ModuleDict(found)


def _rows(spec: StageSpec, domain: PreparedDomain) -> int:
    """Rows that a task trains on, over all workers."""
    if domain.kind is None:
        return len(_folds(spec, domain)[1])
    table = DenseTable.open(domain.tables["train"])
    return int(table.usable(domain.name)[dense_folds(spec.settings, table)[0]].sum())


def load_data(spec: StageSpec, method: Method, rank: int, world: int) -> list[Objective]:
    """The tasks of a stage with this rank's rows, the held-out folds and the prompts."""
    dense = dense_objectives(spec.settings, spec.domains, method, rank, world)
    return [
        dense.get(domain.name) or _classification(spec, domain, method, rank, world)
        for domain in spec.domains
    ]


def _classification(
    spec: StageSpec, domain: PreparedDomain, method: Method, rank: int, world: int
) -> Classification:
    settings, backbone = spec.settings, method.backbone
    table, rows, held = _folds(spec, domain)
    check_held_out(domain.name, rows, held, table.groups)
    mine = rows[rank::world]
    views = Views(settings.training, settings.seed, domain.name, len(table))
    first_image, first_text = method.first_blocks
    options = settings.training
    budget = options.cache_gib / len(spec.domains)

    def cache(chosen: np.ndarray, count: int) -> TrunkCache:
        share = budget * len(chosen) / max(1, len(mine) + len(held))
        return TrunkCache(backbone, first_image, table.images, chosen, views, count, share)

    text = Prompts(backbone, first_text, list(domain.classes), list(domain.templates))
    return Classification(
        cache(mine, options.views),
        torch.from_numpy(table.labels[mine].copy()),
        cache(held, 0),
        torch.from_numpy(table.labels[held].copy()),
        text,
        backbone,
        domain.name,
    )


def _prune(
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


@torch.no_grad()
def _outcome(
    spec: StageSpec, method: Method, adapter: Adapter, objectives: Sequence[Objective]
) -> Outcome:
    group = adapter.export()
    for task in objectives:
        head = task.head()
        if head is not None:
            group |= stored_head(task.name, head)
    facts: dict[str, Any] = {
        "parameters": sum(t.numel() for k, t in group.items() if t.is_floating_point()),
        "temperatures": {},
    }
    outcome = Outcome(group, {}, {}, facts)
    watch = adapter.watch = Watch(len(objectives))
    for number, (domain, task) in enumerate(zip(spec.domains, objectives, strict=True)):
        if isinstance(task, Classification):
            _export_classes(outcome, spec, method, adapter, domain, task, number)
        elif isinstance(task, DenseObjective):
            _export_head(outcome, adapter, task, number)
    adapter.watch = None
    facts["experts"] = describe_experts(watch, spec.settings.experts.shared_count)
    facts["temperature"] = next(iter(facts["temperatures"].values()))
    return outcome


def _export_classes(
    outcome: Outcome,
    spec: StageSpec,
    method: Method,
    adapter: Adapter,
    domain: PreparedDomain,
    task: Classification,
    number: int,
) -> None:
    """Probes, class features and temperature of one task."""
    backbone, watch = method.backbone, adapter.watch
    table, rows, fold = _folds(spec, domain)
    probes = rows[np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int)]
    images = table.images(probes)
    with backbone.kernels.exact():
        adapter.watch = None
        x_BLD = method.trunk(backbone.normalise(images))
        reference_BF = adapter.image(x_BLD, number)
        adapter.watch = watch  # the expert load is that of the held-out fold and the class names
        u_CF = class_features(adapter, task.text, number)
        reference = backbone.logit_scale * reference_BF @ u_CF.T
        parts = [
            backbone.logit_scale
            * adapter.image(x.to(backbone.device, torch.float32), number)
            @ u_CF.T
            for x in (task.held_x[at : at + 128] for at in range(0, len(task.held_y), 128))
        ]
    held = torch.cat(parts).cpu()
    losses = [F.cross_entropy(held / float(t), task.held_y).item() for t in TEMPERATURES]
    outcome.probe |= {
        f"{domain.name}/images": torch.from_numpy(images.copy()),
        f"{domain.name}/labels": torch.from_numpy(table.labels[probes].copy()),
        f"{domain.name}/logits": reference.cpu(),
        f"{domain.name}/rows": torch.from_numpy(probes.copy()),
        f"{domain.name}/held_rows": torch.from_numpy(fold.copy()),
        f"{domain.name}/held_logits": held,
    }
    outcome.classes[domain.name] = u_CF.cpu()
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    outcome.facts["temperatures"][domain.name] = temperature


def _export_head(outcome: Outcome, adapter: Adapter, task: DenseObjective, number: int) -> None:
    """Probes of one dense task: held-out images with the head's outputs."""
    where = np.arange(min(DENSE_PROBES, len(task.shared.held)))
    watch, adapter.watch = adapter.watch, None
    output = task.output(adapter, where, number)
    adapter.watch = watch
    task.look(adapter, number)
    images = task.shared.table.images(task.shared.held[where])
    outcome.probe[f"{task.name}/images"] = torch.from_numpy(images)
    outcome.probe[f"{task.name}/output"] = output.cpu()
    outcome.facts["temperatures"][task.name] = 1.0
