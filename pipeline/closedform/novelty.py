"""Has any task seen such an image? `r(x) = min_c d_c(x) - d_0(x)`, and what it means (7.5).

Shapes: B images, T tasks, K compact width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from archipelago.pipeline.closedform.discriminant import Discriminant
from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.taskset import BACKGROUND, TaskSet

FEWEST = 8  # rows that say what is usual
ALONE = 4.0  # slope in standard deviations where there is one task
QUANTILE = 0.99  # of its rows, the midpoint there


@dataclass(frozen=True)
class NoveltyFit:
    """`p(unseen) = sigma(a (r - r_0))`.

    Attributes:
        slope: a.
        midpoint: `r_0`.
        seen: sorted r of left-out rows.
    """

    slope: float
    midpoint: float
    seen: np.ndarray


class Novelty:
    """Distance to the nearest class against the distance to the background's mean."""

    def __init__(self, tasks: TaskSet, most_left_out: int) -> None:
        self.tasks, self.most_left_out = tasks, most_left_out

    def __call__(self, x_BK: np.ndarray, by_class: np.ndarray | None = None) -> np.ndarray:
        """r of images, (B,); `by_class` are J's scores (B, M) where they are known already."""
        x = x_BK.astype(np.float64)
        squares = np.einsum("bk,bk->b", x @ self._difference, x)
        if by_class is None or self._model is not self.tasks.by_class:
            by_class = self._model.scores(x)
        return squares - 2.0 * by_class.max(axis=1)

    @cached_property
    def _model(self) -> Discriminant:
        return self.tasks.by_class if self.tasks.novel_by == "class" else self.tasks.by_total

    @cached_property
    def _difference(self) -> np.ndarray:
        """Inverse covariance of the classes less that of the background, (K, K)."""
        return self._model.precision - self.tasks.background.precision

    @cached_property
    def fit(self) -> NoveltyFit:
        """Slope and midpoint from rows of the tasks, seen and, without their task, unseen."""
        tasks = self.tasks
        seen = np.sort(np.concatenate([self._seen(t) for t in range(len(tasks))]))
        if len(seen) < FEWEST or seen.var() == 0.0:
            return NoveltyFit(0.0, 0.0, seen)
        if len(tasks) == 1:
            return NoveltyFit(ALONE / float(seen.std()), float(np.quantile(seen, QUANTILE)), seen)
        most = min(self.most_left_out, len(tasks))
        chosen = np.linspace(0, len(tasks) - 1, most).round().astype(int)
        unseen = np.concatenate([self._unseen(t) for t in chosen])
        if len(unseen) < FEWEST or unseen.var() == 0.0:
            return NoveltyFit(0.0, 0.0, seen)
        apart = float(unseen.mean() - seen.mean())
        slope = max(apart, 0.0) / float(0.5 * (seen.var() + unseen.var()))
        return NoveltyFit(slope, float(0.5 * (unseen.mean() + seen.mean())), seen)

    def _seen(self, task: int) -> np.ndarray:
        """r of a task's rows as if they had not been learned."""
        tasks, rows = self.tasks, self.tasks.rows[task]
        if tasks.regime == "tasks":
            rows = rows.where(tasks.task_removal(task).possible)
            own, removal = np.full(len(rows), task), tasks.task_removal(task, rows, BACKGROUND)
        else:
            rows = self._calibrating(task)
            own, removal = tasks.own_class(task, rows), tasks.class_removal(task, rows)
        distances = self._model.left_out(rows.compact, own, removal)
        if tasks.regime == "struck":
            distances[np.arange(len(rows)), own] = np.inf
        r = distances.min(axis=1) - tasks.background.distances(rows.compact)[:, 0]
        return r[np.isfinite(r)]

    def _unseen(self, task: int) -> np.ndarray:
        """r of a task's rows where the task was never learned."""
        compact = self._calibrating(task).compact
        distances = self.tasks.without(task).distances(compact)
        return distances.min(axis=1) - self.tasks.background.distances(compact)[:, 0]

    def _calibrating(self, task: int) -> CalibrationRows:
        rows = self.tasks.rows[task]
        if self.tasks.regime == "classes":
            return rows.where(self.tasks.class_removal(task).possible)
        return rows.where(self.tasks.tasks[task].sums.known[rows.labels])
