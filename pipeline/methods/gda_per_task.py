"""Gaussian discriminant of each task's classes: one shrunk covariance a task, nothing trained.

Rule: `Sigma_t = (S_t + nu T_t) / (N - C + nu)`, scores `-1/2 d_c` (method 7.3), the likeliest task
answers. The covariance is drawn towards that of the background; ridge strength `nu` and sharpness
are chosen by leaving calibration rows out in closed form.
"""

from __future__ import annotations

from archipelago.pipeline.closedform import Head, fit_head
from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.closed import ClosedForm
from archipelago.pipeline.records import TaskRecord


@register
class GdaPerTask(ClosedForm):
    """Gaussian discriminant analysis, task by task."""

    name = "gda_per_task"

    def fit_head(self, record: TaskRecord) -> Head:
        """See the module's text."""
        assert record.sums is not None and record.rows is not None and self.basis is not None
        return fit_head(record.sums, record.rows, self.row_scores(record), self.basis, clip=False)
