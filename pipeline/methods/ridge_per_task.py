"""Ridge regression on each task's class indicators: what one would try first, nothing trained.

Rule: `W = (M + nu I)^-1 sum_n x_n y_n'` on compact features with `M = sum_n x_n x_n'`, the
likeliest task answers; `nu` and sharpness are chosen by leaving calibration rows out.
"""

from __future__ import annotations

from archipelago.pipeline.closedform import Head, fit_ridge
from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.closed import ClosedForm
from archipelago.pipeline.records import TaskRecord


@register
class RidgePerTask(ClosedForm):
    """Ridge classification, task by task."""

    name = "ridge_per_task"

    def fit_head(self, record: TaskRecord) -> Head:
        """See the module's text."""
        assert record.sums is not None and record.rows is not None and self.basis is not None
        return fit_ridge(record.sums, record.rows, self.basis)
