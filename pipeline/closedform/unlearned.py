"""What learned classes tell of classes that nobody learned, by their text features (7.6).

A model of images and texts is made from the class means and texts of the learned tasks. How strong
its ridge is, and how sharp its scores are, follows from leaving tasks out in turn: their rows,
scored among their own classes, as if the task had not been learned.

Shapes: B images, R rows, C classes to be scored, M learned classes, U candidates that nobody
learned, K compact width, F embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from archipelago.pipeline.closedform.discriminant import Discriminant
from archipelago.pipeline.closedform.evidence import FEWEST
from archipelago.pipeline.closedform.taskset import TaskSet
from archipelago.pipeline.closedform.tempering import sharpen
from archipelago.pipeline.closedform.threads import one_thread

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of a ridge on texts, in mean second moments
SHARPNESSES = (1e-4, 1000.0)
FEWEST_CLASSES = 8  # learned ones that a model is made from
MOST_LEFT_OUT = 32  # tasks


@dataclass(frozen=True, eq=False)
class Pairs:
    """Learned classes with their texts; a class counts for its share of its task's images.

    Attributes:
        model: class means (M, K) under the covariance of J.
        texts: (M, F) class features of frozen CLIP.
        weights: (M,) `n_c / N_t`, divided by the number of tasks.
    """

    model: Discriminant
    texts: np.ndarray
    weights: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """(K,) of the images."""
        return self.weights @ self.model.means

    @cached_property
    def text_mean(self) -> np.ndarray:
        """(F,)."""
        return self.weights @ self.texts

    @cached_property
    def images_MK(self) -> np.ndarray:
        """`D`: rows `sqrt(w_c) (mu_c - m)`."""
        return np.sqrt(self.weights)[:, None] * (self.model.means - self.mean)

    @cached_property
    def texts_MF(self) -> np.ndarray:
        """`E`: rows `sqrt(w_c) (u_c - mean u)`."""
        return np.sqrt(self.weights)[:, None] * (self.texts - self.text_mean)

    @cached_property
    def weighted_differences(self) -> np.ndarray:
        """`R = Sigma^-1 D'`, (K, M)."""
        factor = (self.model.factor, True)
        return cho_solve(factor, self.images_MK.T, check_finite=False)

    @cached_property
    def total_factor(self) -> np.ndarray:
        """Lower Cholesky factor of `Sigma + D'D`, (K, K)."""
        total = self.model.covariance + self.images_MK.T @ self.images_MK
        return cholesky(total, lower=True, check_finite=False)

    @cached_property
    def whitened_images(self) -> np.ndarray:
        """`D'`, whitened by `Sigma + D'D`: (K, M)."""
        whole = self.images_MK.T
        return solve_triangular(self.total_factor, whole, lower=True, check_finite=False)

    def text_moment(self, strength: float) -> np.ndarray:
        """`E'E + strength tr(E'E)/F I`, (F, F)."""
        moment = self.texts_MF.T @ self.texts_MF
        level = float(np.trace(moment)) / len(moment)
        moment[np.diag_indices(len(moment))] += strength * (level or 1.0)
        return moment


class TextModel(Protocol):
    """Scores images against texts."""

    @classmethod
    def of(cls, pairs: Pairs, strength: float) -> TextModel:
        """Made from learned classes, with a ridge on their texts."""

    def scores(self, compact_BK: np.ndarray, text_CF: np.ndarray) -> np.ndarray:
        """(B, C), up to what all classes of an image share and up to a scale."""


class Unlearned:
    """A text model of a set of tasks with its strength and sharpness: a pure function of the set.

    Args:
        tasks: the set.
        texts: class features of frozen CLIP by task, (C, F) each.
        kind: of the model.
    """

    def __init__(
        self, tasks: TaskSet, texts: Mapping[str, np.ndarray], kind: type[TextModel]
    ) -> None:
        self.tasks, self.kind = tasks, kind
        self._texts = [
            texts[name].astype(np.float64)[task.sums.known]
            for name, task in zip(tasks.names, tasks.tasks, strict=True)
        ]

    @one_thread
    def scores(self, compact_BK: np.ndarray, text_CF: np.ndarray) -> np.ndarray | None:
        """Calibrated scores (B, C) of classes by their texts; None where too little is learned."""
        if self.fitted is None:
            return None
        model, _, sharpness = self.fitted
        return sharpness * model.scores(compact_BK.astype(np.float64), text_CF.astype(np.float64))

    @cached_property
    def fitted(self) -> tuple[TextModel, float, float] | None:
        """The model of all tasks, its strength, its sharpness q."""
        every = np.arange(len(self.tasks))
        most = min(MOST_LEFT_OUT, len(every))
        chosen = np.linspace(0, len(every) - 1, most).round().astype(int)
        parts = [self._left_out(t) for t in chosen if self._tells(t)]
        own = np.concatenate([labels for _, labels in parts]) if parts else np.zeros(0, int)
        if len(own) < FEWEST:
            return None
        best = (-np.inf, 0.0, 0.0)
        for number, strength in enumerate(STRENGTHS):
            scores = _stacked([found[number] for found, _ in parts])
            sharpness, likely = sharpen(scores, own, SHARPNESSES)
            best = max(best, (float(likely.mean()), strength, sharpness))
        return self.kind.of(self._pairs(every), best[1]), best[1], best[2]

    def _tells(self, task: int) -> bool:
        """Whether there is something to tell apart in it, and enough to learn from without it."""
        others = sum(len(u) for u in self._texts) - len(self._texts[task])
        return len(self._texts[task]) > 1 and others >= FEWEST_CLASSES

    def _left_out(self, task: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Scores (R, C) of a task's rows for each strength without the task, and their classes."""
        sums, rows = self.tasks.tasks[task].sums, self.tasks.rows[task]
        rows = rows.where(sums.known[rows.labels])
        x = rows.compact.astype(np.float64)
        pairs = self._pairs(np.delete(np.arange(len(self.tasks)), task))
        found = [self.kind.of(pairs, s).scores(x, self._texts[task]) for s in STRENGTHS]
        return found, np.searchsorted(np.flatnonzero(sums.known), rows.labels)

    def _pairs(self, chosen: np.ndarray) -> Pairs:
        """The classes of all tasks, or of all but one."""
        missing = sorted(set(range(len(self.tasks))) - set(chosen.tolist()))
        model = self.tasks.classes_without(missing[0]) if missing else self.tasks.by_class
        sums = [self.tasks.tasks[t].sums for t in chosen]
        weights = [s.counts[s.known] / (s.total * len(sums)) for s in sums]
        texts = [self._texts[t] for t in chosen]
        return Pairs(model, np.concatenate(texts), np.concatenate(weights))


def retold(scores_BU: np.ndarray, told_BU: np.ndarray) -> np.ndarray:
    """`s + g`, lowered or raised until an image's candidates have together what s gave them.

    So what is learned of texts says which of them it is, and not whether it is any of them.
    """
    both = scores_BU + told_BU
    lost = np.logaddexp.reduce(scores_BU, axis=1) - np.logaddexp.reduce(both, axis=1)
    return both + lost[:, None]


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Scores of several class lists below each other, the shorter ones filled up with `-inf`."""
    width = max(part.shape[1] for part in parts)
    found = np.full((sum(len(part) for part in parts), width), -np.inf)
    start = 0
    for part in parts:
        found[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return found
