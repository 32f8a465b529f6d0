"""Closed form on frozen features: from sums of a task to its head, and from a set of tasks to who
answers for an image (method 7.1 - 7.5). Plain numpy and scipy in double precision."""

from pipeline.closedform.basis import Basis, BasisSums, make_basis
from pipeline.closedform.head import Head, fit_head, fit_ridge, left_out_head_scores
from pipeline.closedform.knowledge import Knowledge, KnownTask
from pipeline.closedform.rows import CalibrationRows
from pipeline.closedform.sums import Sums

__all__ = [
    "Basis",
    "BasisSums",
    "CalibrationRows",
    "Head",
    "Knowledge",
    "KnownTask",
    "Sums",
    "fit_head",
    "fit_ridge",
    "left_out_head_scores",
    "make_basis",
]
