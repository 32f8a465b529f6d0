"""Recognise tasks by their descriptions: a multimodal model compares every image with them.

The statistics stand behind it: they decide how new an image is (`prototype.py`), and they answer
where the model does not, which is counted. For methods whose answers are soft, the model's
likelihoods are one more term of the evidence, with the weight that explains the calibration rows
best: 0 where it does not help, and then nobody is asked.

The calibration rows of a task are scored once, when it is learned, against the tasks known by then:
no image of an earlier task is ever needed again. So what is fitted on these scores, unlike all else
an identifier says, depends on the order of learning.

Shapes: B images, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.base import Evidence, Identification, Identifier, register
from archipelago.pipeline.identifiers.calibration import (
    CalibrationFold,
    ConsultRule,
    ScoreCalibration,
    combined,
    fit_calibration,
    fit_consult_rule,
    floored,
    margins_of,
)
from archipelago.pipeline.identifiers.description import Description, Sample
from archipelago.pipeline.identifiers.prototype import Prototype
from archipelago.pipeline.identifiers.score_cache import ImageSource, ScoreCache
from archipelago.pipeline.records import TaskRecord


@register
class Mllm(Identifier):
    """Every image is shown to the model."""

    name = "mllm"
    Settings = MultimodalSettings
    settings: MultimodalSettings
    asks: ClassVar[tuple[str | None, ...]] = ("likelihood", "choice")

    def __init__(
        self,
        settings: MultimodalSettings,
        basis: Basis,
        score_cache: ScoreCache | None = None,
        soft: bool = False,
    ) -> None:
        super().__init__(settings, basis, score_cache, soft)
        self.prototype = Prototype(settings, basis)
        self._records: dict[str, TaskRecord] = {}
        self._descriptions: dict[str, str] = {}
        self._folds: dict[str, CalibrationFold] = {}
        self._fit()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks, by name."""
        return self.prototype.tasks

    @property
    def texts(self) -> tuple[str, ...]:
        """Their descriptions."""
        return tuple(self._descriptions[task] for task in self.tasks)

    @property
    def alone(self) -> Identifier:
        """The statistics."""
        return self.prototype

    def refusal_threshold(self, share: float) -> float | None:
        """That of the prototypes."""
        return self.prototype.refusal_threshold(share)

    def describe(self, sample: Sample) -> Description | None:
        """One sentence on a new task, or the one in the settings."""
        return self._asked.describe(sample)

    @property
    def _asked(self) -> ScoreCache:
        if self.score_cache is None:
            raise ValueError(
                f"identifier {self.name} needs a model: give build_identifier a score_cache"
            )
        return self.score_cache

    # -- what is known -----------------------------------------------------------------------

    def know(self, records: Mapping[str, TaskRecord]) -> None:
        """Know these tasks, with their descriptions and the scores of their calibration rows."""
        self.prototype.know(records)
        self._records = dict(records)
        for name, record in records.items():
            if record.description is None:
                raise ValueError(f"task '{name}' has no description; this identifier needs one")
        self._descriptions = {
            name: str(record.description["text"])
            for name, record in records.items()
            if record.description is not None
        }
        self._folds = {
            name: self._fold(name, record.study)
            for name, record in sorted(records.items())
            if record.study is not None
        }
        self._fit()

    def _fold(self, task: str, study: Mapping[str, Any]) -> CalibrationFold:
        """A task's scored rows among the tasks that are known now, each row left out of them."""
        shares = self._left_out(task)
        options = tuple(option for option in study["options"] if option in self.tasks)
        columns = [self.tasks.index(option) for option in options]
        return CalibrationFold.load(task, study, options, shares[:, columns], margins_of(shares))

    def _left_out(self, task: str) -> np.ndarray:
        """Log shares (R, T) of a task's calibration rows, each left out where it can be."""
        rows = self._records[task].rows
        assert rows is not None
        shares = self.prototype.knowledge.log_shares(rows.compact.astype(np.float32))
        found, where = self.prototype.knowledge.left_out_log_shares(task)
        shares[where] = found
        return floored(shares)

    def study(self, record: TaskRecord, images: ImageSource) -> dict[str, Any] | None:
        """Scores of a new task's calibration rows against all tasks known now."""
        margins = margins_of(self._left_out(record.name))
        rows = self._rows(margins)
        scores = self._asked.scores(images, rows, self.texts)[:, :-1].astype(float)
        return CalibrationFold.noted(self.tasks, rows, scores)

    def _rows(self, margins: np.ndarray) -> np.ndarray:
        """Calibration rows that are scored."""
        count = min(len(margins), self.settings.calibration_images)
        return np.unique(np.linspace(0, len(margins) - 1, count).astype(np.int64))

    def _fit(self) -> None:
        centred = self.settings.scoring == "likelihood"
        folds = list(self._folds.values())
        self.calibration: ScoreCalibration = fit_calibration(folds, centred)
        self.rule = (
            fit_consult_rule(folds, self.calibration, 1.0) if self.soft else ConsultRule(1.0, 1.0)
        )

    # -- deciding ----------------------------------------------------------------------------

    def identify(self, evidence: Evidence) -> Identification:
        """The prototypes' answer, with the model's word on which task it is."""
        found = self.prototype.identify(evidence)
        rows = self.to_consult(found)
        return self.with_scores(found, rows, self._scores(evidence, rows))

    def to_consult(self, found: Identification) -> np.ndarray:
        """All images, as soon as there is a choice and the model's word has any weight."""
        heard = len(self.tasks) > 1 and self.rule.weight > 0
        return np.arange(len(found.novelty) if heard else 0)

    def with_scores(
        self, found: Identification, rows: np.ndarray, scores: np.ndarray
    ) -> Identification:
        """The prototypes' answer, with the model's word on some of the images."""
        if len(self.tasks) < 2:
            return found
        answered = ~np.isnan(scores).any(axis=1)
        rows, scores = rows[answered], scores[answered]
        log_shares = found.log_shares.copy()
        if len(rows):
            said = self.calibration.log_shares(scores, self.tasks)
            log_shares[rows] = self._combined(log_shares[rows], said)
        return replace(found, log_shares=log_shares)

    def _combined(self, signature: np.ndarray, model: np.ndarray) -> np.ndarray:
        """Log shares (n, T) from both."""
        return combined(signature, model, self.rule.weight)

    def _scores(self, evidence: Evidence, rows: np.ndarray) -> np.ndarray:
        """The model's scores (n, T) for the learned tasks."""
        if not len(rows):
            return np.zeros((0, len(self.tasks)))
        if evidence.images is None:
            raise ValueError(f"identifier {self.name} needs the images, not only their features")
        return self._asked.scores(evidence.images, rows, self.texts)[:, :-1].astype(float)
