"""What closed-form methods share: a linear head for each task on compact features of frozen CLIP.

Nothing is trained and nothing derived is stored: a head follows from the record of its task alone,
so neither the order of learning nor other tasks can change it.

Shapes: B images, C classes of a task, K compact features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from archipelago.pipeline.closedform import Head
from archipelago.pipeline.methods.base import Fitted, Method, StageData, log_softmax
from archipelago.pipeline.methods.view import Function, View
from archipelago.pipeline.records import ClassList, GroupRecord, TaskRecord


class ClosedForm(Method):
    """A method whose functions are heads."""

    trains = False
    holds_out = False

    @abstractmethod
    def fit_head(self, record: TaskRecord) -> Head:
        """The head of a task, from its record."""

    def fit(self, stage: StageData, earlier: Sequence[GroupRecord]) -> Fitted:
        """Nothing is left to be found: the record is all."""
        return Fitted()

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The task's own head; frozen CLIP before it was learned."""
        return Function(task, None) if task is not None and task in learned else None

    def head(self, record: TaskRecord) -> Head:
        """The head of a task; worked out once for each record and each way of doing it."""
        key = (self.name, self.options.model_dump_json())
        if key not in record.derived:
            record.derived[key] = self.fit_head(record)
        return record.derived[key]

    def scores(self, view: View, function: Function, listed: ClassList) -> np.ndarray | None:
        """The head's log-probabilities; a head knows the classes of its own task and no others."""
        record = self.records[function.task]
        if listed != record.listed:
            return None
        assert record.text_CF is not None
        clip_BC = self.clip_scores(view, record.text_CF)
        return self.head(record).log_probabilities(view.compact, clip_BC)

    def parts(self, view: View, function: Function, listed: ClassList) -> dict[str, np.ndarray]:
        """The head, and as it would be without calibration."""
        head = ClosedForm.scores(self, view, function, listed)
        assert head is not None
        model = self.head(self.records[function.task])
        raw = view.compact.astype(np.float64) @ model.weights + model.bias
        return {
            "head": head,
            "uncalibrated": log_softmax(np.where(model.known, raw, -np.inf)),
            "both": head,
        }

    def row_scores(self, record: TaskRecord) -> np.ndarray:
        """CLIP's scores (R, C) of a task's calibration rows."""
        assert record.rows is not None and record.text_CF is not None
        return self.scale * self.debiased(record.rows.frozen) @ record.text_CF.astype(np.float64).T
