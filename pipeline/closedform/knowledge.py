"""What a set of learned tasks knows together: whose an image is, and whether it is anybody's (7.5).

Shapes: B images, R calibration rows, T tasks, M classes of all tasks, K compact width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from archipelago.pipeline.closedform.basis import Basis
from archipelago.pipeline.closedform.evidence import Evidence, Kind
from archipelago.pipeline.closedform.novelty import Measure, Novelty
from archipelago.pipeline.closedform.taskset import KnownTask, TaskSet
from archipelago.pipeline.closedform.threads import one_thread

SHRINKAGE = 0.003
MOST_ROWS = 8192  # calibration rows over all tasks
MOST_LEFT_OUT = 32  # tasks that are taken for unseen ones in turn

__all__ = ["Knowledge", "KnownTask"]


class Knowledge:
    """A pure function of the set of tasks; each part is computed when it is first asked for."""

    def __init__(
        self,
        tasks: Mapping[str, KnownTask],
        basis: Basis,
        *,
        evidence: Kind = "both",
        novelty: Measure = "both",
        shrinkage: float = SHRINKAGE,
        most_rows: int = MOST_ROWS,
        most_left_out: int = MOST_LEFT_OUT,
    ) -> None:
        """Take the tasks in order of their names.

        Args:
            tasks: by name; each has at least one image.
            basis: of the backbone.
            evidence: E, J or both.
            novelty: by distance, by cosine or both.
            shrinkage: of pooled covariances.
            most_rows: calibration rows over all tasks.
            most_left_out: tasks that are taken for unseen ones, evenly over names.

        Raises:
            ValueError: no task, a task without images, or another width than the basis.
        """
        self._tasks = TaskSet(tasks, basis, shrinkage, most_rows)
        self._evidence = Evidence(self._tasks, evidence)
        self._novelty = Novelty(self._tasks, most_left_out, novelty)

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, sorted: the order of columns."""
        return self._tasks.names

    @property
    @one_thread
    def tau(self) -> float:
        """Temperature of the evidence of tasks; infinite = not used."""
        return self._evidence.tau

    @property
    @one_thread
    def beta(self) -> float:
        """Sharpness of the evidence of classes; 0 = not used."""
        return self._evidence.beta

    @property
    def regime(self) -> str:
        """How calibration rows were left out: of their `classes`, with their class `struck` out,
        or of their `tasks`."""
        return self._tasks.regime

    @one_thread
    def judge(self, compact_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`log p(t|x)` (B, T) and `r(x)` (B,), from the same scores of all classes."""
        by_class = self._tasks.by_class.scores(compact_BK)
        return (
            self._evidence.log_shares(compact_BK, by_class),
            self._novelty(compact_BK, by_class),
        )

    @one_thread
    def log_shares(self, compact_BK: np.ndarray) -> np.ndarray:
        """`log p(t|x)`, (B, T)."""
        return self._evidence.log_shares(compact_BK)

    @one_thread
    def left_out_log_shares(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """`log p(t|x)` of a task's calibration rows, each as if it had not been learned.

        Returns:
            (R', T) of the rows that can be left out, and the mask (R,) of those.
        """
        number = self.names.index(task)
        return self._evidence.left_out(number, self._tasks.tasks[number].rows)

    @one_thread
    def class_scores(self, compact_BK: np.ndarray) -> np.ndarray:
        """J of all classes, task after task, up to what all share: (B, M); `-inf` without
        images."""
        scores = np.full((len(compact_BK), len(self._tasks.known)), -np.inf)
        scores[:, self._tasks.known] = self._tasks.by_class.scores(compact_BK)
        return scores

    @one_thread
    def novelty(self, compact_BK: np.ndarray) -> np.ndarray:
        """`r(x)`, (B,): above `midpoint` it is likelier that no task has seen such an image."""
        return self._novelty(compact_BK)

    @property
    @one_thread
    def novelty_weights(self) -> np.ndarray:
        """(2,) of the distance and of the cosine in `r`."""
        return self._novelty.weights

    @property
    @one_thread
    def slope(self) -> float:
        """`a` of `unseen`; 0 where the rows do not say."""
        return self._novelty.fit.slope

    @property
    @one_thread
    def midpoint(self) -> float:
        """`r_0` of `unseen`."""
        return self._novelty.fit.midpoint

    def unseen(self, compact_BK: np.ndarray) -> np.ndarray:
        """`sigma(a (r - r_0))`, (B,)."""
        return expit(self.slope * (self.novelty(compact_BK) - self.midpoint))

    @one_thread
    def refusal_threshold(self, share: float) -> float:
        """The r above which `share` of left-out rows lie; infinite where there are none.

        Raises:
            ValueError: the share is not within 0 .. 1.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a share is within 0 .. 1, not {share}")
        seen = self._novelty.fit.seen
        return float(np.quantile(seen, 1.0 - share)) if len(seen) else np.inf
