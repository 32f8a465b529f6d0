"""All learned classes under one covariance: `log p_J(t, c|x) = log softmax(q J_c)` (7.6).

J is the discriminant that the evidence uses; its sharpness q makes the left-out rows' own classes
most likely, among the classes of all tasks.

Shapes: B images, R rows, M classes of all tasks, N known candidates, K compact width.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from archipelago.pipeline.closedform.evidence import FEWEST
from archipelago.pipeline.closedform.head import SHARPNESSES
from archipelago.pipeline.closedform.taskset import TaskSet
from archipelago.pipeline.closedform.tempering import sharpen
from archipelago.pipeline.closedform.threads import one_thread


class Joint:
    """A pure function of the set of tasks, computed when it is first asked for."""

    def __init__(self, tasks: TaskSet) -> None:
        self.tasks = tasks

    @cached_property
    def sharpness(self) -> float | None:
        """q; None where fewer than a handful of rows can be left out of their classes."""
        if self.tasks.regime != "classes":
            return None
        scores, own = [], []
        for task in range(len(self.tasks)):
            rows = self.tasks.rows[task]
            rows = rows.where(self.tasks.class_removal(task, rows).possible)
            scores.append(self.tasks.left_out_of_classes(task, rows))
            own.append(self.tasks.own_class(task, rows))
        found = np.concatenate(own)
        if len(found) < FEWEST:
            return None
        return sharpen(np.concatenate(scores), found, SHARPNESSES)[0]

    @one_thread
    def scores(self, compact_BK: np.ndarray) -> dict[str, np.ndarray] | None:
        """`q J_c` by task, (B, C) each, up to what all classes share; `-inf` without images.

        None where nothing says how sharp they are.
        """
        if self.sharpness is None:
            return None
        every = np.full((len(compact_BK), len(self.tasks.known)), -np.inf)
        every[:, self.tasks.known] = self.sharpness * self.tasks.by_class.scores(compact_BK)
        ends = np.cumsum([len(task.sums.counts) for task in self.tasks.tasks])
        return dict(zip(self.tasks.names, np.split(every, ends[:-1], axis=1), strict=True))


def mixed(log_p_BN: np.ndarray, log_joint_BN: np.ndarray, share: float) -> np.ndarray:
    """`log((1 - share) p + share p_J)`, (B, N)."""
    with np.errstate(divide="ignore"):
        ours, theirs = np.log1p(-share), np.log(share)
    return np.logaddexp(ours + log_p_BN, theirs + log_joint_BN)
