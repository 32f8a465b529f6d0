"""A set of tasks in order of their names: the discriminants it defines, and which calibration
rows can be left out of them (7.2, 7.5).

Shapes: T tasks, M known classes of all tasks, R calibration rows, K compact width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from archipelago.pipeline.closedform.basis import Basis
from archipelago.pipeline.closedform.discriminant import Discriminant, Removal
from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.sums import Sums
from archipelago.pipeline.closedform.triangle import inner, packed, shrunk, unpacked

BACKGROUND = 2.0  # how many tasks the background counts for among classes
TENTH = 0.1  # share of rows that can be left out, from which those alone calibrate


@dataclass(frozen=True)
class KnownTask:
    """What is known of a learned task: sums and calibration rows of one class list."""

    sums: Sums
    rows: CalibrationRows


class TaskSet:
    """A pure function of the set: whoever is added first, the bits are the same."""

    def __init__(
        self, tasks: Mapping[str, KnownTask], basis: Basis, shrinkage: float, most_rows: int
    ) -> None:
        """Take the tasks in order of their names.

        Args:
            tasks: by name; each has at least one image.
            basis: of the backbone.
            shrinkage: of every covariance, towards its diagonal's mean.
            most_rows: calibration rows over all tasks, shared out evenly.

        Raises:
            ValueError: no task, a task without images, or another width than the basis.
        """
        if not tasks:
            raise ValueError("a set of tasks needs at least one")
        self.names = tuple(sorted(tasks))
        self.tasks = tuple(tasks[name] for name in self.names)
        for name, task in zip(self.names, self.tasks, strict=True):
            if not task.sums.known.any():
                raise ValueError(f"task '{name}' has no image")
            if task.sums.width != basis.width:
                raise ValueError(f"task '{name}': width {task.sums.width}, not {basis.width}")
        self.basis, self.shrinkage = basis, shrinkage
        most = max(1, most_rows // len(self.tasks))
        self.rows = tuple(task.rows.thinned(most) for task in self.tasks)
        known = [task.sums.known for task in self.tasks]
        self.known = np.concatenate(known)  # of all classes, which have images
        self.starts = np.concatenate([[0], np.cumsum([k.sum() for k in known])])  # in known ones
        self.totals = np.array([task.sums.total for task in self.tasks])

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def class_means(self) -> np.ndarray:
        """(M, K) means of the known classes, task after task."""
        return np.concatenate([task.sums.means[task.sums.known] for task in self.tasks])

    @cached_property
    def task_means(self) -> np.ndarray:
        """(T, K)."""
        return np.stack([task.sums.mean for task in self.tasks])

    @cached_property
    def _within(self) -> np.ndarray:
        """Packed `sum_t S_t / N_t`."""
        total = np.zeros_like(self.tasks[0].sums.scatter)
        for task in self.tasks:
            total += task.sums.scatter / task.sums.total
        return total

    @cached_property
    def _total(self) -> np.ndarray:
        """Packed `sum_t (S_t + B_t) / N_t`."""
        spread = np.concatenate(
            [task.sums.spread / np.sqrt(task.sums.total) for task in self.tasks]
        )
        return self._within + packed(spread.T @ spread)

    @cached_property
    def by_task(self) -> Discriminant:
        """E: task means under the mean over tasks of `(S_t + B_t) / N_t`."""
        covariance = unpacked(self._total) / len(self)
        least = float(np.trace(self.basis.covariance))
        model = Discriminant(self.task_means, shrunk(covariance, self.shrinkage, least))
        return model.corrected(self._excess_of_tasks(model))

    @cached_property
    def by_class(self) -> Discriminant:
        """J: class means under `(sum_t S_t / N_t + 2 C_0) / (T + 2)`."""
        model = self._with_background(self.class_means, self._within, len(self))
        return model.corrected(self._excess_of_classes(model))

    @cached_property
    def by_total(self) -> Discriminant:
        """J with task means and total scatter, where no row can be left out of its class."""
        model = self._with_background(self.task_means, self._total, len(self))
        return model.corrected(self._excess_of_tasks(model))

    @cached_property
    def background(self) -> Discriminant:
        """The background's mean, which is zero, under its covariance."""
        covariance = shrunk(self.basis.covariance, self.shrinkage)
        return Discriminant(np.zeros((1, self.basis.width)), covariance)

    def without(self, task: int) -> Discriminant:
        """What measures novelty, `by_class` or `by_total`, of the set without one task."""
        if self.novel_by == "class":
            return self.classes_without(task)
        own = self.tasks[task].sums
        scatter = self._total - (own.scatter + packed(own.between)) / own.total
        return self._reduced(self.by_total, np.s_[task : task + 1], scatter)

    def classes_without(self, task: int) -> Discriminant:
        """`by_class` of the set without one task."""
        own = self.tasks[task].sums
        gone = np.s_[self.starts[task] : self.starts[task + 1]]
        return self._reduced(self.by_class, gone, self._within - own.scatter / own.total)

    def _reduced(self, whole: Discriminant, gone: slice, triangle: np.ndarray) -> Discriminant:
        model = self._with_background(np.delete(whole.means, gone, 0), triangle, len(self) - 1)
        assert whole.excess is not None
        return model.corrected(np.delete(whole.excess, gone))

    def _excess_of_classes(self, model: Discriminant) -> np.ndarray:
        """`v_t/n_c` of the known classes; v_t where a task does not tell it (one image a class) is
        that of the others."""
        sums = [task.sums for task in self.tasks]
        spare = np.array([s.total - s.known.sum() for s in sums], dtype=np.float64)
        spread = _known_or_mean(inner(model.precision, [s.scatter for s in sums]), spare)
        return np.concatenate([v / s.counts[s.known] for v, s in zip(spread, sums, strict=True)])

    def _excess_of_tasks(self, model: Discriminant) -> np.ndarray:
        """`v_t/N_t`, v_t the spread of all images of a task."""
        sums = [task.sums for task in self.tasks]
        scatter = inner(model.precision, [s.scatter for s in sums])
        scatter += [((s.spread @ model.precision) * s.spread).sum() for s in sums]
        totals = np.array([s.total for s in sums], dtype=np.float64)
        return _known_or_mean(scatter, totals - 1.0) / totals

    def _with_background(self, means: np.ndarray, triangle: np.ndarray, tasks: int) -> Discriminant:
        covariance = unpacked(triangle) + BACKGROUND * self.basis.covariance
        return Discriminant(means, shrunk(covariance / (tasks + BACKGROUND), self.shrinkage))

    @cached_property
    def regime(self) -> Literal["classes", "struck", "tasks"]:
        """How rows calibrate: left out of their classes, with their own class struck out (where
        fewer than a tenth can be left out), or left out of their tasks (where none can)."""
        out = sum(int(self.class_removal(t).possible.sum()) for t in range(len(self)))
        rows = sum(len(rows) for rows in self.rows)
        if rows == 0 or out >= TENTH * rows:
            return "classes"
        return "struck" if out else "tasks"

    @property
    def novel_by(self) -> Literal["class", "task"]:
        """What an image is novel to."""
        return "task" if self.regime == "tasks" else "class"

    def class_removal(self, task: int, rows: CalibrationRows | None = None) -> Removal:
        """Leave the rows of a task out of their classes, under `by_class`."""
        sums, rows = self.tasks[task].sums, self.rows[task] if rows is None else rows
        share = (1.0 - self.shrinkage) / (sums.total * (len(self) + BACKGROUND))
        return Removal.of(sums.counts[rows.labels], rows.copies, rows.counted, share)

    def task_removal(
        self, task: int, rows: CalibrationRows | None = None, background: float = 0.0
    ) -> Removal:
        """Leave the rows of a task out of it, under `by_task`, or `by_total` with `background`."""
        sums, rows = self.tasks[task].sums, self.rows[task] if rows is None else rows
        share = (1.0 - self.shrinkage) / (sums.total * (len(self) + background))
        return Removal.of(np.full(len(rows), sums.total), rows.copies, rows.counted, share)

    def left_out_of_classes(self, task: int, rows: CalibrationRows) -> np.ndarray:
        """Scores of J, (R, M), of a task's rows, each left out of its class."""
        own, removal = self.own_class(task, rows), self.class_removal(task, rows)
        return -0.5 * self.by_class.left_out(rows.compact, own, removal)

    def own_class(self, task: int, rows: CalibrationRows) -> np.ndarray:
        """(R,) column of each row's class among the known ones; of a known class."""
        column = np.cumsum(self.tasks[task].sums.known) - 1
        return self.starts[task] + column[rows.labels]


def _known_or_mean(scatter: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """`scatter / spare`, and where nothing is spare, what all others have together; 0 for want of
    any."""
    told = spare > 0
    everyone = float(scatter[told].sum() / spare[told].sum()) if told.any() else 0.0
    return np.where(told, scatter / np.where(told, spare, 1.0), everyone)
