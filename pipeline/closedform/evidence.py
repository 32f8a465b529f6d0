"""Which task an image is of: `log p(t|x) = log softmax_t(E_t / tau + lse_{c in t} beta J_c)` (7.5).

Shapes: B images, R rows, T tasks, M known classes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np

from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.taskset import TaskSet
from archipelago.pipeline.closedform.tempering import log_softmax

Kind = Literal["both", "E", "J"]
TAUS = tuple(2.0**power for power in range(10))
BETAS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
TAU, BETA = 32.0, 0.05  # where no row can be left out
FEWEST = 8  # rows that a fit needs


class Evidence:
    """E: discriminant of task means; J: discriminant of all class means; together or alone."""

    def __init__(self, tasks: TaskSet, kind: Kind) -> None:
        self.tasks = tasks
        # Own classes are unknown to rows that cannot be left out, and J with them.
        self.kind: Kind = kind if tasks.regime == "classes" else "E"

    @property
    def tau(self) -> float:
        """Temperature of E; infinite = without E."""
        return self._fitted[0]

    @property
    def beta(self) -> float:
        """Sharpness of J; 0 = without J."""
        return self._fitted[1]

    def log_shares(self, x_BK: np.ndarray, by_class: np.ndarray | None = None) -> np.ndarray:
        """`log p(t|x)`, (B, T); `by_class` are J's scores (B, M) where they are known already."""
        by_task = self.tasks.by_task.scores(x_BK) if np.isfinite(self.tau) else None
        if self.beta and by_class is None:
            by_class = self.tasks.by_class.scores(x_BK)
        return self._combined(by_task, by_class, len(x_BK))

    def left_out(self, task: int, rows: CalibrationRows) -> tuple[np.ndarray, np.ndarray]:
        """`log p(t|x)` (R', T) of a task's rows, each left out, and the mask (R,) of those that
        can be."""
        mask = self._mask(task, rows)
        by_task, by_class = self._left_out(task, rows, mask)
        return self._combined(by_task, by_class, int(mask.sum())), mask

    def _combined(
        self, by_task: np.ndarray | None, by_class: np.ndarray | None, images: int
    ) -> np.ndarray:
        scores = np.zeros((images, len(self.tasks)))
        if by_task is not None and np.isfinite(self.tau):
            scores = scores + by_task / self.tau
        if by_class is not None and self.beta:
            scores = scores + _pooled(self.beta * by_class, self.tasks.starts)
        return log_softmax(scores)

    @cached_property
    def _fitted(self) -> tuple[float, float]:
        """The most likely (tau, beta) for left-out rows; the flatter of equally likely ones."""
        taus = (np.inf,) if self.kind == "J" else TAUS[::-1]
        if self.kind == "both":
            taus = (np.inf, *taus)
        betas = (0.0,) if self.kind == "E" else BETAS
        if len(self.tasks) == 1:
            return np.inf, betas[0]
        parts = [self._left_out(t, rows, self._mask(t, rows)) for t, rows in self._rows()]
        own = np.concatenate([np.full(len(e), t) for t, (e, _) in enumerate(parts)])
        if len(own) < FEWEST:
            return (np.inf if self.kind == "J" else TAU), (0.0 if self.kind == "E" else BETA)
        by_task = np.concatenate([e for e, _ in parts])
        found = (-np.inf, np.inf, 0.0)
        for beta in betas:
            by_class = np.zeros_like(by_task)
            if beta:
                starts = self.tasks.starts
                by_class = np.concatenate([_pooled(beta * j, starts) for _, j in parts])
            for tau in taus:
                scores = by_class + (by_task / tau if np.isfinite(tau) else 0.0)
                value = float(log_softmax(scores)[np.arange(len(own)), own].mean())
                found = max(found, (value, tau, -beta))
        return found[1], -found[2]

    def _rows(self) -> list[tuple[int, CalibrationRows]]:
        return list(enumerate(self.tasks.rows))

    def _mask(self, task: int, rows: CalibrationRows) -> np.ndarray:
        if self.tasks.regime == "classes":
            return self.tasks.class_removal(task, rows).possible
        return self.tasks.task_removal(task, rows).possible

    def _left_out(
        self, task: int, rows: CalibrationRows, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of E (R', T) and of J (R', M); no columns of J where it is not used."""
        tasks, rows = self.tasks, rows.where(mask)
        own = np.full(len(rows), task)
        removal = tasks.task_removal(task, rows)
        by_task = -0.5 * tasks.by_task.left_out(rows.compact, own, removal)
        if self.kind == "E":
            return by_task, np.zeros((len(rows), 0))
        return by_task, tasks.left_out_of_classes(task, rows)


def _pooled(scores_BM: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Log-sum-exp over each task's classes, (B, T)."""
    first = starts[:-1]
    most = np.maximum.reduceat(scores_BM, first, axis=1)
    shifted = scores_BM - np.repeat(most, np.diff(starts), axis=1)
    return most + np.log(np.add.reduceat(np.exp(shifted), first, axis=1))
