"""What a run folder says about a run: read once, aligned by task name, nothing computed.

Evaluation files of early stages know fewer tasks than the run does after a task was appended;
columns they lack are NaN (accuracy) or None (per-image correctness).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archipelago.pipeline.records.evaluation import read_correct, read_evaluation
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.store import GroupRef, RunFolder, names
from archipelago.pipeline.streams import Stage


@dataclass(frozen=True)
class Records:
    """Everything on disk that a report is made of. N tasks; stages are counted from 0."""

    run: dict[str, Any]
    tasks: list[str]
    evaluations: dict[int, dict[str, Any]]
    correct: dict[int, dict[str, np.ndarray]]
    zero_shot: dict[str, np.ndarray]
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
        pairs = zip(self.newest["tasks"], self.newest["accuracy"]["mtil_given"], strict=True)
        return [task for task, accuracy in pairs if accuracy is None]

    def matrix(self, setting: str) -> np.ndarray:
        """(stages, N) percent; NaN where a stage, or a task in it, was not measured."""
        accuracy = np.full((len(self.stages), len(self.tasks)), np.nan)
        for stage, record in self.evaluations.items():
            if setting in record["accuracy"]:
                accuracy[stage] = self._aligned(record["tasks"], record["accuracy"][setting])
        return accuracy

    def images(self) -> list[int | None]:
        """Test images per task, None where no evaluation has met the task yet."""
        known: dict[str, int] = {}
        for record in self.evaluations.values():
            known.update(zip(record["tasks"], record["images"], strict=True))
        return [known.get(task) for task in self.tasks]

    def zero_row(self, setting: str) -> np.ndarray:
        """Frozen CLIP's accuracy per task in a setting, percent; NaN = not measured."""
        return self.zero_shot.get(setting, np.full(len(self.tasks), np.nan))

    def zero_images(self, setting: str) -> list[np.ndarray | None]:
        """Per-image correctness of frozen CLIP, task by task."""
        return [self.zero_correct.get(f"{setting}/{task}") for task in self.tasks]

    def row(self, stage: int, setting: str) -> list[np.ndarray | None]:
        """Per-image correctness of one stage, task by task."""
        kept = self.correct.get(stage, {})
        return [kept.get(f"{setting}/{task}") for task in self.tasks]

    def _aligned(self, names: list[str], values: list[float | None]) -> list[float]:
        known = dict(zip(names, values, strict=True))
        return _floats([known.get(task) for task in self.tasks]).tolist()


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def recorded_stages(facts: dict[str, Any]) -> list[Stage]:
    """The stages that a run.json names."""
    stream = facts["stream"]
    listed = stream.get("stages") or [[task] for task in stream["tasks"]]
    return [Stage(number, tuple(tasks)) for number, tasks in enumerate(listed)]


def read_records(run: RunFolder) -> Records | None:
    """Read a run folder; None if there is no run in it yet. Raises: IntegrityError by file."""
    folder = run.folder
    if not run.exists():
        return None
    facts = run.read()
    tasks = list(facts["stream"]["tasks"])
    evaluations, correct = {}, {}
    for stage in range(len(recorded_stages(facts))):
        if (record := read_evaluation(folder, stage)) is not None:
            evaluations[stage] = record
        if (right := read_correct(folder, stage)) is not None:
            correct[stage] = right
    zero_shot: dict[str, np.ndarray] = {}
    if (stored := read_evaluation(folder, None)) is not None:
        for kind, row in stored["settings"].items():
            known = dict(zip(stored["tasks"], row, strict=True))
            zero_shot[kind] = _floats([known.get(task) for task in tasks])
    zero_correct = read_correct(folder, None) or {}
    groups = [(ref, read_card(run, ref)) for ref in run.current_groups()]
    experts = {
        ref.stage: json.loads(run.groups.read(ref, names.EXPERTS))
        for ref, _ in groups
        if names.EXPERTS in run.groups.files(ref)
    }
    return Records(
        facts,
        tasks,
        evaluations,
        correct,
        zero_shot,
        zero_correct,
        groups,
        run.journal.events(),
        experts,
    )
