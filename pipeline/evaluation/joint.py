"""What tasks gain from being learned together, and how they share their experts.

`metrics` says for each task what it was measured by, `own` which of these figures is the task's
own: `delta_m` compares it with single-task models of the same code, both with the task given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.records import Records

BASELINE = "lora_per_task"
Figures = dict[str, dict[str, dict[str, Any]]]


def comparison(records: Records, references: dict[str, Records]) -> dict[str, Any]:
    """`metrics`, `own`, `baseline`, `delta_m` of a report; the last two null without a baseline."""
    ours, own = task_metrics(records), own_figures(records)
    options = records.run["config"]["method"].get("options") or {}
    name = options.get("baseline") or BASELINE
    other = references.get(name)
    if other is None or not other.complete or other.tasks != records.tasks:
        return {"metrics": ours, "own": own, "baseline": None, "delta_m": None}
    theirs = task_metrics(other)
    return {
        "metrics": ours,
        "own": own,
        "baseline": {"method": name, "metrics": theirs},
        "delta_m": relative_gain(ours, theirs, own) if records.complete else None,
    }


def task_metrics(records: Records) -> Figures:
    """Task -> name -> value, unit and lower_is_better after the last measured stage.

    Of a classification: `accuracy` with the task given, and as the identifier decides. Of a dense
    task that was not learned yet: `not learned`, null.
    """
    measured = (records.newest or {}).get("metrics") or {}
    dense = records.dense
    found: Figures = {task: {} for task in records.tasks}
    for name, setting in (("accuracy", "mtil_given"), ("accuracy identified", "mtil_identified")):
        row = metrics.last(records.matrix(setting)).columns
        for task, value in zip(records.tasks, row, strict=True):
            if task in dense:
                continue
            shown = None if np.isnan(value) else float(value)
            found[task][name] = {"value": shown, "unit": "%", "lower_is_better": False}
    for task in dense:
        unknown = {"not learned": {"value": None, "unit": "", "lower_is_better": False}}
        found[task] = measured.get(task, unknown)
    return found


def own_figures(records: Records) -> dict[str, str]:
    """The name of each task's own figure."""
    known = (records.newest or {}).get("own") or {}
    other = dict.fromkeys(records.dense, "not learned")
    return dict.fromkeys(records.tasks, "accuracy") | other | known


def relative_gain(ours: Figures, theirs: Figures, own: dict[str, str]) -> float | None:
    """Delta_m of the tasks' own figures, percent; None where one is unknown or zero."""
    pairs = [(figures[own[task]], theirs[task][own[task]]) for task, figures in ours.items()]
    if any(a["value"] is None or not b["value"] for a, b in pairs):
        return None
    return metrics.delta_m(
        [a["value"] for a, _ in pairs],
        [b["value"] for _, b in pairs],
        [a["lower_is_better"] for a, _ in pairs],
    )


def dense_figure(record: dict[str, Any], task: str) -> str:
    """A dense task's own figure in words, from the record of a stage."""
    name = record["own"].get(task)
    if name is None:
        return f"{task} -"
    score = record["metrics"][task][name]
    value = "-" if score["value"] is None else f"{score['value']:.1f}"
    return f"{task} {name} {value} {score['unit']}"


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
