"""A run folder as the driver would leave it, with made-up but consistent figures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pipeline.store import GroupRef, RunFolder
from pipeline.store.documents import dumps

TASKS = ("aid", "dtd", "gtsrb", "mnist")
IMAGES = (60, 80, 100, 40)
ZERO_SHOT = (40.0, 45.0, 20.0, 30.0)
LEARNED = (80.0, 70.0, 90.0, 95.0)


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
        "schema": 1,
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
    hits = {task: _hits(ZERO_SHOT[j], IMAGES[j], j) for j, task in enumerate(tasks)}
    run.folder.write("evaluation/zero-shot.safetensors", save(hits))
    values = [_accuracy(hits[task]) for task in tasks]
    run.folder.write_json("evaluation/zero-shot.json", {"accuracy": values})


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
    ref = run.groups.write(stage, task, _group_files(run, stage, task, method))
    manifest = run.models.publish(run.groups.list())
    _write_evaluation(run, stage, tasks, identifier)
    run.journal.append(
        "stage-done", stage=stage, task=task, sha256=ref.sha256, manifest=manifest, seconds={}
    )
    run.journal.append("evaluated", stage=stage, task=task)


def _group_files(run: RunFolder, stage: int, task: str, method: str) -> dict[str, bytes]:
    weights = np.full((8, 4), stage + len(method) / 100, dtype=np.float32)
    group = save({"image.A": weights})
    before: list[GroupRef] = run.groups.list()
    card = {
        "schema": 1,
        "stage": stage,
        "name": task,
        "classes": ["one", "two"],
        "templates": ["a photo of a {}."],
        "digests": {
            "train": hashlib.sha256(f"{task} train".encode()).hexdigest(),
            "test": hashlib.sha256(f"{task} test".encode()).hexdigest(),
        },
        "counts": {"train": 200, "test": IMAGES[stage]},
        "method": method,
        "neighbours": [{"task": before[-1].name, "distance": 0.31, "gain": 0.02}] if before else [],
        "parameters": {"group": 70_000 + 10 * stage, "identifier": 5_000},
        "bytes": {"group": len(group), "identity": 20_000, "probe": 9_000},
        "calibration": {},
        "description": None,
        "parent": before[-1].sha256 if before else None,
    }
    identity = save({"counts": np.ones(2)})
    return {
        "group.safetensors": group,
        "identity.safetensors": identity,
        "probe.safetensors": save({"images": np.zeros((1, 3), np.uint8)}),
        "task.json": dumps(card),
    }


def _write_evaluation(
    run: RunFolder, stage: int, tasks: tuple[str, ...], identifier: str | None
) -> None:
    hits: dict[str, np.ndarray] = {}
    for j, task in enumerate(tasks):
        oracle = LEARNED[j] if j <= stage else ZERO_SHOT[j]
        hits[f"identified/{task}"] = _hits(percent(stage, j), IMAGES[j], j)
        hits[f"oracle/{task}"] = _hits(oracle, IMAGES[j], j)
    run.folder.write(f"evaluation/{stage:03d}.safetensors", save(hits))
    settings = ("identified", "oracle")
    accuracy = {s: [_accuracy(hits[f"{s}/{task}"]) for task in tasks] for s in settings}
    run.folder.write_json(
        f"evaluation/{stage:03d}.json",
        {
            "stage": stage,
            "task": tasks[stage],
            "tasks": list(tasks),
            "accuracy": accuracy,
            "images": list(IMAGES[: len(tasks)]),
            "identifier": _answers(stage, tasks) if identifier else None,
            "lambda": stage / (stage + 2),
            "threshold": 1.5,
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
        "seen_acceptance": 98.0 - stage,
        "unseen_auroc": 97.5 if learned < len(tasks) else None,
        "closed_accuracy": 100.0,
        "accuracy": 98.5,
    }
