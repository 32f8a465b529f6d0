"""Has any task seen such an image? `r(x) = min_c d_c(x) - d_0(x)`, and what it means (7.5).

Shapes: B images, T tasks, K compact width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from archipelago.pipeline.closedform.discriminant import Discriminant
from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.taskset import BACKGROUND, TaskSet

FEWEST = 8  # rows that say what is usual
ALONE = 4.0  # slope in standard deviations where there is one task
QUANTILE = 0.99  # of its rows, the midpoint there
NORMAL = 1.4826  # standard deviations in a median deviation of a normal distribution


def robust(values: np.ndarray) -> tuple[float, float]:
    """Median and variance, the latter from the median deviation: some domains have rows that lie
    far from everything, and a few of those would decide for all.

    The variance is that of all values where more than half of them are equal.
    """
    middle = float(np.median(values))
    spread = (NORMAL * float(np.median(np.abs(values - middle)))) ** 2
    return middle, spread or float(values.var())


def even_midpoint(slope: float, seen: Sequence[np.ndarray], unseen: Sequence[np.ndarray]) -> float:
    """`r_0` at which seen images are taken for unseen as much as unseen ones for seen:
    `mean_t mean sigma(a (r - r_0)) = mean_u mean sigma(a (r_0 - r))`.

    Args:
        slope: a, above 0.
        seen: r of each task's rows.
        unseen: r of rows whose task is not known, by task.
    """
    known, novel = ([r for r in tasks if len(r)] for tasks in (seen, unseen))

    def balance(midpoint: float) -> float:
        refused = np.mean([expit(slope * (r - midpoint)).mean() for r in known])
        taken = np.mean([expit(slope * (midpoint - r)).mean() for r in novel])
        return float(taken - refused)

    every = np.concatenate([*known, *novel])
    margin = 40.0 / slope  # beyond it everything is on one side
    return float(brentq(balance, every.min() - margin, every.max() + margin))


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
        """Slope and midpoint from rows of the tasks, seen and, without their task, unseen.

        The slope is that of two normal distributions, by medians. The midpoint errs as often on
        either side, every task counting alike: one that is unlike all others would otherwise draw
        it to where it is needed least.
        """
        tasks = self.tasks
        known = [self._seen(t) for t in range(len(tasks))]
        seen = np.sort(np.concatenate(known))
        if len(seen) < FEWEST or seen.var() == 0.0:
            return NoveltyFit(0.0, 0.0, seen)
        middle, spread = robust(seen)
        if len(tasks) == 1:
            return NoveltyFit(ALONE / np.sqrt(spread), float(np.quantile(seen, QUANTILE)), seen)
        most = min(self.most_left_out, len(tasks))
        chosen = np.linspace(0, len(tasks) - 1, most).round().astype(int)
        unknown = [self._unseen(t) for t in chosen]
        unseen = np.concatenate(unknown)
        if len(unseen) < FEWEST or unseen.var() == 0.0:
            return NoveltyFit(0.0, 0.0, seen)
        novel, scatter = robust(unseen)
        slope = max(novel - middle, 0.0) / (0.5 * (spread + scatter))
        if slope == 0.0:
            return NoveltyFit(0.0, 0.5 * (novel + middle), seen)
        return NoveltyFit(slope, even_midpoint(slope, known, unknown), seen)

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
