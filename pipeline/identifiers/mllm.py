"""Recognise tasks by their descriptions: a multimodal model compares every image with them.

The signature stands behind it: it decides about "none of these" (`prototype.py`), and it answers
where the model does not, which is counted.

Shapes: B images, T tasks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from pipeline.identifiers.base import Evidence, Identification, Identifier, Study, register
from pipeline.identifiers.description import Description, Sample
from pipeline.identifiers.folds import Fold, Reading, fit_reading, floored, margins_of
from pipeline.identifiers.looker import Looker
from pipeline.identifiers.prototype import QUANTILES, Prototype
from pipeline.identifiers.signature import Background, Signature
from pipeline.settings import IdentifierSettings


@register
class Mllm(Identifier):
    """Every image is shown to the model."""

    name = "mllm"
    looks: ClassVar[bool] = True

    def __init__(
        self,
        settings: IdentifierSettings,
        background: Background,
        acceptance: float = 0.98,
        looker: Looker | None = None,
    ) -> None:
        super().__init__(settings, background, acceptance, looker)
        self.guard = Prototype(settings, background, acceptance)
        self.descriptions: dict[str, str] = {}
        self._folds: dict[str, Fold] = {}
        self._fit()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks, in the order of learning."""
        return self.guard.tasks

    @property
    def texts(self) -> tuple[str, ...]:
        """Their descriptions."""
        return tuple(self.descriptions[task] for task in self.tasks)

    @property
    def threshold(self) -> float | None:
        """The guard's."""
        return self.guard.threshold

    @property
    def alone(self) -> Identifier:
        """The guard."""
        return self.guard

    def numbers(self) -> int:
        """The signatures' numbers and the kept rows of scores."""
        kept = sum(f.signature.size + f.scores.size + f.margins.size for f in self._folds.values())
        return self.guard.numbers() + kept

    def prepare(self, signature: Signature, features: np.ndarray) -> Signature:
        """As the guard does."""
        return self.guard.prepare(signature, features)

    def describe(self, sample: Sample) -> Description | None:
        """One sentence on a new task, or the one in the settings."""
        return self._looker.describe(sample)

    @property
    def _looker(self) -> Looker:
        if self.looker is None:
            raise ValueError(
                f"identifier {self.name} needs a model: give build_identifier a looker"
            )
        return self.looker

    # -- learning ----------------------------------------------------------------------------

    def learn(
        self, task: str, signature: Signature, held_out: np.ndarray, study: Study | None = None
    ) -> dict:
        """Add a task; its held-out fold is scored against all tasks known now."""
        if study is None or study.description is None:
            raise ValueError(f"task '{task}' has no description; this identifier needs one")
        guard = self.guard.learn(task, signature, held_out)
        self.descriptions[task] = study.description.text
        shares = log_of(self.guard.identify(study.held_out).shares)
        margins = margins_of(shares)
        rows = self._rows(margins)  # of a first task too: how well its own images usually fit
        fold = Fold(
            task,
            self.tasks,
            shares[rows],
            self._scores(study.held_out, rows),
            np.quantile(margins, QUANTILES),
        )
        calibration = {"guard": guard, "fold": fold.asdict()}
        self._folds[task] = Fold.load(task, calibration["fold"])  # as it will be restored
        self._fit()
        return calibration

    def _rows(self, margins: np.ndarray) -> np.ndarray:
        """Rows of a held-out fold that are scored and kept."""
        count = min(len(margins), self.settings.calibration_images)
        return np.unique(np.linspace(0, len(margins) - 1, count).astype(np.int64))

    def restore(
        self,
        task: str,
        signature: Signature,
        calibration: dict,
        description: Description | None = None,
    ) -> None:
        """Add a task with the description and the scores of its own stage."""
        if description is None:
            raise ValueError(f"task '{task}' has no description; this identifier needs one")
        self.guard.restore(task, signature, calibration["guard"])
        self.descriptions[task] = description.text
        self._folds[task] = Fold.load(task, calibration["fold"])
        self._fit()

    def forget(self, task: str) -> None:
        """Remove a task with its description and its scores."""
        self.guard.forget(task)
        del self.descriptions[task], self._folds[task]
        self._fit()

    def _known_folds(self) -> list[Fold]:
        """Every fold among the tasks known now, in an order that does not depend on history."""
        return [self._folds[task].among(self.tasks) for task in sorted(self._folds)]

    def _fit(self) -> None:
        centred = self.settings.scoring == "likelihood"
        self.reading: Reading = fit_reading(self._known_folds(), centred)

    # -- deciding ----------------------------------------------------------------------------

    def identify(self, evidence: Evidence) -> Identification:
        """The guard's answer, with the model's word on which task it is."""
        found = self.guard.identify(evidence)
        rows = self.doubted(found)
        return self.settled(found, rows, self._scores(evidence, rows))

    def doubted(self, found: Identification) -> np.ndarray:
        """All images, as soon as there is a choice."""
        return np.arange(len(found.chosen) if len(self.tasks) > 1 else 0)

    def settled(
        self, found: Identification, rows: np.ndarray, scores: np.ndarray
    ) -> Identification:
        """The guard's answer, with the model's word on some of the images."""
        if len(self.tasks) < 2:
            return found
        log_shares = log_of(found.shares)
        answered = ~np.isnan(scores).any(axis=1)
        rows, scores = rows[answered], scores[answered]
        if len(rows):
            said = self.reading.log_shares(scores, self.tasks)
            log_shares[rows] = self._combined(log_shares[rows], said)
        shares = np.exp(log_shares)
        shares /= shares.sum(axis=1, keepdims=True)
        none = found.probabilities[:, -1:]
        return replace(
            found,
            shares=shares,
            probabilities=np.concatenate([shares * (1.0 - none), none], axis=1),
            chosen=np.where(found.chosen < 0, -1, shares.argmax(axis=1)),
        )

    def _combined(self, signature: np.ndarray, model: np.ndarray) -> np.ndarray:
        """Log shares (n, T) from both."""
        return model

    def _scores(self, evidence: Evidence, rows: np.ndarray) -> np.ndarray:
        """The model's scores (n, T) for the learned tasks."""
        if not len(rows):
            return np.zeros((0, len(self.tasks)))
        if evidence.shown is None:
            raise ValueError(f"identifier {self.name} needs the images, not only their features")
        return self._looker.look(evidence.shown, rows, self.texts)[:, :-1].astype(float)


def log_of(shares: np.ndarray) -> np.ndarray:
    """Log shares, none below the floor."""
    return floored(np.log(np.maximum(shares, 1e-300)))
