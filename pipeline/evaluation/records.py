"""What a run folder says about a run: read once, aligned by task name, nothing computed.

Evaluation files of early stages know fewer tasks than the run does after a task was appended;
columns they lack are NaN (accuracy) or None (per-image correctness).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load

from pipeline.store import GroupRef, RunFolder
from pipeline.streams import Stage

SETTINGS = ("identified", "oracle")


@dataclass(frozen=True)
class Records:
    """Everything on disk that a report is made of. N tasks; stages are counted from 0."""

    run: dict[str, Any]
    tasks: list[str]
    evaluations: dict[int, dict[str, Any]]
    correct: dict[int, dict[str, np.ndarray]]
    zero_shot: np.ndarray
    zero_correct: dict[str, np.ndarray]
    groups: list[tuple[GroupRef, dict[str, Any]]]
    events: list[dict[str, Any]]
    experts: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every stage of the stream was evaluated."""
        return bool(self.tasks) and len(self.evaluations) == len(self.stages)

    @property
    def stages(self) -> list[Stage]:
        """The stages of the stream; runs from before there were stages had one task in each."""
        return recorded_stages(self.run)

    @property
    def learned(self) -> list[int]:
        """Stage in which each task is learned."""
        return [stage.number for stage in self.stages for _ in stage.tasks]

    @property
    def newest(self) -> dict[str, Any] | None:
        """The evaluation file of the last measured stage."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    @property
    def dense(self) -> list[str]:
        """Tasks that have no accuracy: their figures are in the records' `metrics`."""
        if self.newest is None:
            return []
        pairs = zip(self.newest["tasks"], self.newest["accuracy"]["oracle"], strict=True)
        return [task for task, accuracy in pairs if accuracy is None]

    def matrix(self, setting: str) -> np.ndarray:
        """(stages, N) percent; rows of stages that were not measured are NaN."""
        accuracy = np.full((len(self.stages), len(self.tasks)), np.nan)
        for stage, record in self.evaluations.items():
            accuracy[stage] = self._aligned(record["tasks"], record["accuracy"][setting])
        return accuracy

    def images(self) -> list[int | None]:
        """Test images per task, None where no evaluation has met the task yet."""
        known: dict[str, int] = {}
        for record in self.evaluations.values():
            known.update(zip(record["tasks"], record["images"], strict=True))
        return [known.get(task) for task in self.tasks]

    def row(self, stage: int, setting: str) -> list[np.ndarray | None]:
        """Per-image correctness of one stage, task by task."""
        kept = self.correct.get(stage, {})
        return [kept.get(f"{setting}/{task}") for task in self.tasks]

    def _aligned(self, names: list[str], values: list[float | None]) -> list[float]:
        known = dict(zip(names, values, strict=True))
        found = [known.get(task) for task in self.tasks]
        return [float("nan") if value is None else float(value) for value in found]


def recorded_stages(facts: dict[str, Any]) -> list[Stage]:
    """The stages that a run.json names."""
    stream = facts["stream"]
    listed = stream.get("stages") or [[task] for task in stream["tasks"]]
    return [Stage(number, tuple(tasks)) for number, tasks in enumerate(listed)]


def descriptions(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The descriptions in a group's task.json by task; empty where nobody wrote any."""
    found = card.get("description")
    if not found:
        return {}
    by_task = {card["name"]: found} if isinstance(found.get("text"), str) else found
    return {task: description for task, description in by_task.items() if description}


def read_records(run: RunFolder) -> Records | None:
    """Read a run folder; None if there is no run in it yet."""
    folder = run.folder
    if not run.exists():
        return None
    facts = run.read()
    tasks = list(facts["stream"]["tasks"])
    evaluations, correct = {}, {}
    for stage in range(len(recorded_stages(facts))):
        name = f"evaluation/{stage:03d}"
        if folder.exists(f"{name}.json"):
            evaluations[stage] = folder.read_json(f"{name}.json")
        if folder.exists(f"{name}.safetensors"):
            correct[stage] = load(folder.read(f"{name}.safetensors"))
    zero_shot, zero_correct = np.full(len(tasks), np.nan), {}
    if folder.exists("evaluation/zero-shot.json"):
        stored = folder.read_json("evaluation/zero-shot.json")
        known = dict(zip(stored.get("tasks", tasks), stored["accuracy"], strict=False))
        zero_shot = np.array([known.get(task, np.nan) for task in tasks], dtype=np.float64)
    if folder.exists("evaluation/zero-shot.safetensors"):
        zero_correct = load(folder.read("evaluation/zero-shot.safetensors"))
    groups = [(ref, json.loads(run.groups.read(ref, "task.json"))) for ref in run.groups.list()]
    experts = {
        ref.stage: json.loads(run.groups.read(ref, "experts.json"))
        for ref, _ in groups
        if "experts.json" in run.groups.files(ref)
    }
    return Records(
        facts, tasks, evaluations, correct, zero_shot, zero_correct, groups, run.journal.events(),
        experts,
    )  # fmt: skip
