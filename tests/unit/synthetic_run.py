"""A run folder as the driver would leave it, with made-up but consistent figures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from archipelago.pipeline.closedform import CalibrationRows, Sums
from archipelago.pipeline.evaluation.protocol import SETTINGS
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.records import GroupRecord, Probe, TaskRecord
from archipelago.pipeline.store import GroupRef, RunFolder
from archipelago.pipeline.store.run import SCHEMA

TASKS = ("aid", "dtd", "gtsrb", "mnist")
IMAGES = (60, 80, 100, 40)
ZERO_SHOT = (40.0, 45.0, 20.0, 30.0)
LEARNED = (80.0, 70.0, 90.0, 95.0)
HARDER = {"mtil_given": 0.0, "mtil_identified": 0.0, "xtail": 10.0, "xtail_merged": 5.0}
KINDS = (("", 0.0), ("/debiased", 1.0))
CLASSES, WIDTH = ("one", "two"), 3
SPLITS = ("train", "test")


def config(method: str = "trge", identifier: str = "prototype") -> dict[str, Any]:
    return {
        "method": {"name": method},
        "identifier": {"name": identifier},
        "stream": {"reader": "parquet"},
        "evaluation": {"bootstrap": 200},
        "experts": {"count": 4, "rank": 16},
    }


def write_run(
    path: Path,
    *,
    stages: int = len(TASKS),
    tasks: tuple[str, ...] = TASKS,
    method: str = "trge",
    identifier: str | None = "prototype",
    done: bool | None = None,
) -> RunFolder:
    """A run of `method` over `tasks` of which `stages` are finished; call again to go on."""
    run = RunFolder(str(path))
    folder = run.folder
    folder.write_json("run.json", _facts(tasks, method, identifier))
    run.journal.append("run-started", pid=1, host="here")
    _write_zero_shot(run, tasks)
    finished = {ref.stage for ref in run.groups.list()}
    for stage in range(stages):
        if stage not in finished:
            _write_stage(run, stage, tasks, method, identifier)
    if done if done is not None else stages == len(tasks):
        run.journal.append("run-done")
    return run


def percent(stage: int, column: int) -> float:
    """Identified accuracy before rounding to whole images: a learned task loses a little later."""
    if column > stage:
        return ZERO_SHOT[column] - 1.0 * stage
    return LEARNED[column] - 1.0 * (stage - column)


def _facts(tasks: tuple[str, ...], method: str, identifier: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "config": config(method, identifier or "prototype"),
        "backbone": {"name": "clip-tiny", "sha256": "b" * 64, "parameters": 8_000_000},
        "stream": {"tasks": list(tasks)},
        "seed": 0,
        "kernels": {"attention": "math", "precision": "fp32"},
        "versions": {"torch": "2.14.1", "ray": "2.60.0"},
        "tracking": {},
    }


def _hits(percent_right: float, images: int, seed: int) -> np.ndarray:
    """0/1 per image; the same images are hard for every stage, so that pairs are correlated."""
    hard = np.random.default_rng(seed).permutation(images)
    return (hard < round(percent_right / 100 * images)).astype(np.uint8)


def _accuracy(hits: np.ndarray) -> float:
    return 100.0 * float(hits.mean())


def _write_zero_shot(run: RunFolder, tasks: tuple[str, ...]) -> None:
    """Frozen CLIP; what is debiased is a point better, before rounding."""
    kinds = {(f"{s}{d}", HARDER[s] - better) for s in SETTINGS for d, better in KINDS}
    hits = {
        f"{kind}/{task}": _hits(ZERO_SHOT[j] - harder, IMAGES[j], j)
        for kind, harder in kinds
        for j, task in enumerate(tasks)
    }
    run.folder.write("evaluation/zero-shot.safetensors", save(hits))
    rows = {kind: [_accuracy(hits[f"{kind}/{task}"]) for task in tasks] for kind, _ in kinds}
    run.folder.write_json(
        "evaluation/zero-shot.json",
        {"tasks": list(tasks), "accuracy": rows["mtil_given"], "settings": rows},
    )


def _write_stage(
    run: RunFolder, stage: int, tasks: tuple[str, ...], method: str, identifier: str | None
) -> None:
    task = tasks[stage]
    run.journal.append("stage-started", stage=stage, task=task, attempt=1)
    run.journal.append(
        "stage-trained",
        stage=stage,
        task=task,
        attempt=1,
        steps=400,
        images_per_second=120.5,
        loss=0.7 - 0.1 * stage,
        held_out_accuracy=LEARNED[stage] - 2,
        seconds=0.001,
    )
    ref = _group(run, stage, task, method).write(run.groups).ref
    assert ref is not None
    manifest = run.models.publish(run.groups.list())
    _write_evaluation(run, stage, tasks, method, identifier)
    seconds = {"look": 0.5, "fit": 0.25, "stage": 1.0}
    run.journal.append(
        "stage-done", stage=stage, task=task, sha256=ref.sha256, manifest=manifest, seconds=seconds
    )
    run.journal.append("evaluated", stage=stage, task=task)


def _group(run: RunFolder, stage: int, task: str, method: str) -> GroupRecord:
    before: list[GroupRef] = run.groups.list()
    neighbours = [{"task": before[-1].name, "distance": 0.31, "gain": 0.02}] if before else []
    parent = before[-1].sha256 if before else None
    weights = torch.full((8, 4), stage + len(method) / 100)
    return GroupRecord(
        stage,
        task,
        method,
        (_task(stage, task),),
        {"image.A": weights},
        tuple(neighbours),
        70_000 + 10 * stage,
        parent,
    )


def _task(stage: int, name: str) -> TaskRecord:
    features = np.random.default_rng(stage).normal(size=(6, WIDTH)).astype(np.float32)
    labels = np.arange(6) % len(CLASSES)
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, axis=3)
    scores = np.log(np.full((1, len(CLASSES)), 0.5, np.float32))
    return TaskRecord(
        name,
        CLASSES,
        ("a photo of a {}.",),
        {split: hashlib.sha256(f"{name} {split}".encode()).hexdigest() for split in SPLITS},
        {"train": 200, "test": IMAGES[stage]},
        sums=Sums.of(features, labels, len(CLASSES)),
        rows=CalibrationRows.pick(images, features, features, labels, np.arange(6)),
        probe=Probe(images[:1], labels[:1], scores),
    )


def settings_of(method: str) -> tuple[str, ...]:
    """The settings that a method has answers in."""
    return SETTINGS if method_class(method).policy != "given" else SETTINGS[:1]


def _write_evaluation(
    run: RunFolder, stage: int, tasks: tuple[str, ...], method: str, identifier: str | None
) -> None:
    keeps = method_class(method).policy != "one"  # with its own function for each task
    hits: dict[str, np.ndarray] = {}
    for setting in settings_of(method):
        for j, task in enumerate(tasks):
            found = percent(stage, j)
            if setting == "mtil_given" and keeps:
                found = LEARNED[j] if j <= stage else ZERO_SHOT[j]
            hits[f"{setting}/{task}"] = _hits(found - HARDER[setting], IMAGES[j], j)
    run.folder.write(f"evaluation/{stage:03d}.safetensors", save(hits))
    rows = {s: [hits.get(f"{s}/{task}") for task in tasks] for s in SETTINGS}
    run.folder.write_json(
        f"evaluation/{stage:03d}.json",
        {
            "stage": stage,
            "task": tasks[stage],
            "tasks": list(tasks),
            "accuracy": {
                setting: [None if found is None else _accuracy(found) for found in row]
                for setting, row in rows.items()
            },
            "metrics": {},
            "own": {},
            "images": list(IMAGES[: len(tasks)]),
            "identifier": _answers(stage, tasks) if identifier else None,
            "work": None,
            "lambda": stage / (stage + 2),
            "parts": {},
            "seconds": 0.002,
        },
    )


def _answers(stage: int, tasks: tuple[str, ...]) -> dict[str, Any]:
    """One image of each learned task is rejected, all of an unseen task but two are."""
    learned = stage + 1
    confusion = np.zeros((len(tasks), learned + 1), dtype=int)
    for j in range(len(tasks)):
        confusion[j, -1] = 1 if j < learned else IMAGES[j] - 2
        confusion[j, min(j, stage)] = IMAGES[j] - confusion[j, -1]
    closed = np.diag(IMAGES[:learned])
    return {
        "options": [*tasks[:learned], "none"],
        "confusion": confusion.tolist(),
        "closed_confusion": closed.tolist(),
        "seen_acceptance": 98.0 - stage if learned < len(tasks) else None,
        "unseen_auroc": 97.5 if learned < len(tasks) else None,
        "closed_accuracy": 100.0,
        "accuracy": 98.5,
        "calibration_error": 2.5,
    }
