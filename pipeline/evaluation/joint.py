"""What tasks gain from being learned together, and how they share their experts.

`metrics` says for each task what it was measured by; its first figure is the task's own, which
`delta_m` compares with single-task models trained by the same code, both with the task given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.evaluation import metrics
from pipeline.evaluation.records import Records

BASELINE = "lora_per_task"
Figures = dict[str, dict[str, dict[str, Any]]]


def comparison(records: Records, references: dict[str, Records]) -> dict[str, Any]:
    """`metrics`, `baseline` and `delta_m` of a report; the latter two null without a baseline."""
    ours = task_metrics(records)
    options = records.run["config"]["method"].get("options") or {}
    name = options.get("baseline") or BASELINE
    other = references.get(name)
    if other is None or not other.complete or other.tasks != records.tasks:
        return {"metrics": ours, "baseline": None, "delta_m": None}
    theirs = task_metrics(other)
    return {
        "metrics": ours,
        "baseline": {"method": name, "metrics": theirs},
        "delta_m": relative_gain(ours, theirs) if records.complete else None,
    }


def task_metrics(records: Records) -> Figures:
    """Task -> name -> value, unit and lower_is_better after the last measured stage.

    Of a classification: `accuracy` with the task given, and as the identifier decides.
    """
    found: Figures = {task: {} for task in records.tasks}
    for name, setting in (("accuracy", "oracle"), ("accuracy identified", "identified")):
        row = metrics.last(records.matrix(setting)).columns
        for task, value in zip(records.tasks, row, strict=True):
            shown = None if np.isnan(value) else float(value)
            found[task][name] = {"value": shown, "unit": "%", "lower_is_better": False}
    return found


def relative_gain(ours: Figures, theirs: Figures) -> float | None:
    """Delta_m of the tasks' own figures, percent; None where one is unknown or zero."""
    pairs = [
        (next(iter(figures.values())), next(iter(theirs[task].values())))
        for task, figures in ours.items()
    ]
    if any(a["value"] is None or not b["value"] for a, b in pairs):
        return None
    return metrics.delta_m(
        [a["value"] for a, _ in pairs],
        [b["value"] for _, b in pairs],
        [a["lower_is_better"] for a, _ in pairs],
    )


def experts(records: Records) -> list[dict[str, Any]]:
    """Per stage how tasks use experts: `routers`, `load[router][task][expert]`, `shared_gate`,
    `information`, and `training`: the shared gate and the information by step."""
    found = []
    for ref, _ in records.groups:
        facts = records.experts.get(ref.stage)
        if facts is None:
            continue
        trained = [e for e in records.events if e["event"] == "stage-trained"]
        curve = next((e.get("curve") for e in reversed(trained) if e["stage"] == ref.stage), None)
        keys = ("step", "shared_gate", "information")
        points = [{key: point.get(key) for key in keys} for point in curve or ()]
        tasks = list(records.stages[ref.stage].tasks)
        found.append({"stage": ref.stage, "tasks": tasks, **facts, "training": points})
    return found
