"""Has any task seen such an image, and what does that mean (7.5)?

    r(x) = w_1 (min_c d_c(x) - d_0(x)) - w_2 max_c cos(x, mu_c)

The first measure knows how images spread, and needs many images a class to know it; the cosine of
compact features needs one. The weights follow from how well each tells the tasks' rows from those
of a task that is left out.

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
    """How far an image is from every class, by two measures; see the module's text."""

    def __init__(self, tasks: TaskSet, most_left_out: int) -> None:
        self.tasks, self.most_left_out = tasks, most_left_out

    def __call__(self, x_BK: np.ndarray, by_class: np.ndarray | None = None) -> np.ndarray:
        """r of images, (B,); `by_class` are J's scores (B, M) where they are known already."""
        x = x_BK.astype(np.float64)
        squares = np.einsum("bk,bk->b", x @ self._difference, x)
        if by_class is None or self._model is not self.tasks.by_class:
            by_class = self._model.scores(x)
        measures = squares - 2.0 * by_class.max(axis=1), -self._cosines(x).max(axis=1)
        return np.stack(measures, axis=1) @ self.weights

    @cached_property
    def _model(self) -> Discriminant:
        return self.tasks.by_class if self.tasks.novel_by == "class" else self.tasks.by_total

    @cached_property
    def _difference(self) -> np.ndarray:
        """Inverse covariance of the classes less that of the background, (K, K)."""
        return self._model.precision - self.tasks.background.precision

    @cached_property
    def _directions(self) -> np.ndarray:
        """Normalised class means, (K, M)."""
        return _normalised(self.tasks.class_means).T

    def _cosines(self, x_BK: np.ndarray) -> np.ndarray:
        """(B, M) to all class means."""
        return _normalised(x_BK.astype(np.float64)) @ self._directions

    # -- what the rows say -------------------------------------------------------------------

    @cached_property
    def _known(self) -> list[np.ndarray]:
        """Both measures (R, 2) of each task's rows as if they had not been learned."""
        return [self._seen(t) for t in range(len(self.tasks))]

    @cached_property
    def _unknown(self) -> list[np.ndarray]:
        """The same of the rows of some tasks that were never learned."""
        most = min(self.most_left_out, len(self.tasks))
        chosen = np.linspace(0, len(self.tasks) - 1, most).round().astype(int)
        return [self._unseen(t) for t in chosen] if len(self.tasks) > 1 else []

    @cached_property
    def weights(self) -> np.ndarray:
        """(2,) of the measures: `max(middle_u - middle_s, 0) / v`, so that the one that tells
        learned domains from others counts, however many images a class has."""
        seen = np.concatenate(self._known)
        if len(seen) < FEWEST:
            return np.array([1.0, 0.0])
        middle, spread = _robust_of_each(seen)
        if len(self.tasks) == 1:
            return np.divide(1.0, np.sqrt(spread), out=np.zeros(2), where=spread > 0.0)
        unseen = np.concatenate(self._unknown)
        if len(unseen) < FEWEST:
            return np.array([1.0, 0.0])
        novel, scatter = _robust_of_each(unseen)
        both = 0.5 * (spread + scatter)
        found = np.divide(np.maximum(novel - middle, 0.0), both, out=np.zeros(2), where=both > 0.0)
        return found if found.any() else np.array([1.0, 0.0])

    @cached_property
    def fit(self) -> NoveltyFit:
        """Slope and midpoint from rows of the tasks, seen and, without their task, unseen.

        The slope is that of two normal distributions, by medians. The midpoint errs as often on
        either side, every task counting alike: one that is unlike all others would otherwise draw
        it to where it is needed least.
        """
        known = [measures @ self.weights for measures in self._known]
        seen = np.sort(np.concatenate(known))
        if len(seen) < FEWEST or seen.var() == 0.0:
            return NoveltyFit(0.0, 0.0, seen)
        middle, spread = robust(seen)
        if len(self.tasks) == 1:
            return NoveltyFit(ALONE / np.sqrt(spread), float(np.quantile(seen, QUANTILE)), seen)
        unknown = [measures @ self.weights for measures in self._unknown]
        unseen = np.concatenate(unknown)
        if len(unseen) < FEWEST or unseen.var() == 0.0:
            return NoveltyFit(0.0, 0.0, seen)
        novel, scatter = robust(unseen)
        slope = max(novel - middle, 0.0) / (0.5 * (spread + scatter))
        if slope == 0.0:
            return NoveltyFit(0.0, 0.5 * (novel + middle), seen)
        return NoveltyFit(slope, even_midpoint(slope, known, unknown), seen)

    def _seen(self, task: int) -> np.ndarray:
        """Both measures of a task's rows as if they had not been learned."""
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
        return self._measured(rows, distances, self._left_out_cosines(task, rows))

    def _left_out_cosines(self, task: int, rows: CalibrationRows) -> np.ndarray:
        """(R, M) of rows to class means without them; `-inf` to the own one where it is theirs
        alone, or is to be struck out."""
        tasks = self.tasks
        cosines, at = self._cosines(rows.compact), np.arange(len(rows))
        own = tasks.own_class(task, rows)
        cosines[at, own] = -np.inf
        if tasks.regime == "classes":
            removal = tasks.class_removal(task, rows)
            means, x = tasks.class_means[own], rows.compact.astype(np.float64)
            # k mu - (k - 1) x is the mean of the others, k = n/(n - m).
            others = removal.stretch[:, None] * (means - x) + x
            found = (_normalised(x) * _normalised(others)).sum(axis=1)
            cosines[at, own] = np.where(removal.possible, found, -np.inf)
        return cosines

    def _unseen(self, task: int) -> np.ndarray:
        """Both measures of a task's rows where the task was never learned."""
        rows, starts = self._calibrating(task), self.tasks.starts
        cosines = self._cosines(rows.compact)
        cosines[:, starts[task] : starts[task + 1]] = -np.inf
        return self._measured(rows, self.tasks.without(task).distances(rows.compact), cosines)

    def _measured(
        self, rows: CalibrationRows, distances: np.ndarray, cosines: np.ndarray
    ) -> np.ndarray:
        """(R', 2) of the rows that have both measures."""
        near = distances.min(axis=1) - self.tasks.background.distances(rows.compact)[:, 0]
        found = np.stack([near, -cosines.max(axis=1)], axis=1)
        return found[np.isfinite(found).all(axis=1)]

    def _calibrating(self, task: int) -> CalibrationRows:
        rows = self.tasks.rows[task]
        if self.tasks.regime == "classes":
            return rows.where(self.tasks.class_removal(task).possible)
        return rows.where(self.tasks.tasks[task].sums.known[rows.labels])


def _normalised(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _robust_of_each(measures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians (2,) and variances (2,) of two measures (R, 2)."""
    found = [robust(column) for column in measures.T]
    return np.array([middle for middle, _ in found]), np.array([spread for _, spread in found])
