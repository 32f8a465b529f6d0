"""Has any task seen such an image, and what does that mean (7.5)?

    r(x) = w_1 (min_c d_c(x) - d_0(x)) - w_2 max_c cos(x, mu_c)

The first measure knows how images spread, and needs many images a class to know it; the cosine of
compact features needs one. Weights and midpoint are those that best tell the tasks' rows from those
of a task that is left out, so that the measure that tells is the one that counts.

Shapes: B images, T tasks, K compact width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from archipelago.pipeline.closedform.discriminant import Discriminant
from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.taskset import BACKGROUND, TaskSet

Measure = Literal["both", "distance", "cosine"]
FEWEST = 8  # rows that say what is usual
ALONE = 4.0  # slope in standard deviations where there is one task
QUANTILE = 0.99  # of its rows, the midpoint there
RIDGE = 0.1  # on the weights of measures in units of their deviation within a task
COUNTED = {"both": (1.0, 1.0), "distance": (1.0, 0.0), "cosine": (0.0, 1.0)}
NORMAL = 1.4826  # standard deviations in a median deviation of a normal distribution


def robust(values: np.ndarray) -> tuple[float, float]:
    """Median and variance, the latter from the median deviation: some domains have rows that lie
    far from everything, and a few of those would decide for all.

    The variance is that of all values where more than half of them are equal.
    """
    middle = float(np.median(values))
    spread = (NORMAL * float(np.median(np.abs(values - middle)))) ** 2
    return middle, spread or float(values.var())


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

    def __init__(self, tasks: TaskSet, most_left_out: int, measure: Measure = "both") -> None:
        self.tasks, self.most_left_out = tasks, most_left_out
        self._counted = np.array(COUNTED[measure])

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

    @property
    def _first(self) -> np.ndarray:
        """One measure alone, where rows do not say."""
        return self._counted * (1.0, 1.0 - self._counted[0])

    @property
    def weights(self) -> np.ndarray:
        """(2,) of the measures in r."""
        return self._fitted[0]

    @cached_property
    def fit(self) -> NoveltyFit:
        """Slope and midpoint; the slope is 0 where the rows do not say."""
        weights, slope, midpoint = self._fitted
        seen = np.sort(np.concatenate([measures @ weights for measures in self._known]))
        if len(self.tasks) == 1 and slope:
            slope = ALONE / np.sqrt(robust(seen)[1])
            midpoint = float(np.quantile(seen, QUANTILE))
        return NoveltyFit(slope, midpoint, seen)

    @cached_property
    def _fitted(self) -> tuple[np.ndarray, float, float]:
        """Weights of the measures, slope and midpoint.

        With one task there are no unseen rows: each measure counts in units of its deviation.
        """
        known = [measures for measures in self._known if len(measures)]
        unknown = [measures for measures in self._unknown if len(measures)]
        seen = np.concatenate([*known, np.zeros((0, 2))])
        if len(seen) < FEWEST or not seen.var(axis=0).any():
            return self._first, 0.0, 0.0
        if len(self.tasks) == 1:
            return _inverse(np.sqrt(_robust_of_each(seen)[1])), 1.0, 0.0
        unseen = np.concatenate([*unknown, np.zeros((0, 2))])
        if len(unseen) < FEWEST or not unseen.var(axis=0).any():
            return self._first, 0.0, 0.0
        weights, midpoint = logistic(known, unknown)
        if not weights.any():
            every = np.concatenate([seen, unseen]) @ self._first
            return self._first, 0.0, float(np.median(every))
        return weights, 1.0, midpoint

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
        return found[np.isfinite(found).all(axis=1)] * self._counted

    def _calibrating(self, task: int) -> CalibrationRows:
        rows = self.tasks.rows[task]
        if self.tasks.regime == "classes":
            return rows.where(self.tasks.class_removal(task).possible)
        return rows.where(self.tasks.tasks[task].sums.known[rows.labels])


def logistic(
    known: Sequence[np.ndarray], unknown: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Logistic regression of being unseen on both measures, with weights of at least 0.

    Every task counts alike, and both sides together: seen rows are then taken for unseen as much
    as unseen ones for seen. One task that is unlike all others does not decide for them.

    Returns:
        Weights w (2,) and the midpoint `r_0`, of `logit p = w m - r_0`.
    """
    sides = (known, unknown)
    x = np.concatenate([*known, *unknown])
    sign = np.concatenate(
        [np.full(sum(map(len, side)), s) for side, s in zip(sides, (-1, 1), strict=True)]
    )
    share = np.concatenate(
        [np.full(len(m), 0.5 / len(side) / len(m)) for side in sides for m in side]
    )
    medians, variances = zip(*(_robust_of_each(m) for side in sides for m in side), strict=True)
    centre, scale = np.mean(medians, axis=0), _inverse(np.sqrt(np.mean(variances, axis=0)))
    z = (x - centre) * scale

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (z @ at[:2] + at[2])
        slopes = -sign * share * expit(-margin)
        value = float((share * np.logaddexp(0.0, -margin)).sum()) + 0.5 * RIDGE * at[:2] @ at[:2]
        return value, np.array([*(z.T @ slopes + RIDGE * at[:2]), slopes.sum()])

    box = [(0.0, None), (0.0, None), (None, None)]
    options = {"ftol": 1e-14, "gtol": 1e-10, "maxiter": 1000}
    found = minimize(
        loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=box, options=options
    ).x
    weights = found[:2] * scale
    return weights, float(weights @ centre - found[2])


def _inverse(scale: np.ndarray) -> np.ndarray:
    """`1 / scale`; 0 where it is 0."""
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0.0)


def _normalised(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _robust_of_each(measures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians (2,) and variances (2,) of two measures (R, 2)."""
    found = [robust(column) for column in measures.T]
    return np.array([middle for middle, _ in found]), np.array([spread for _, spread in found])
