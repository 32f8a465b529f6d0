"""Closed form on frozen features: from sums of a task to its head, and from a set of tasks to who
answers for an image (method 7.1 - 7.5). Plain numpy and scipy in double precision."""

from archipelago.pipeline.closedform.basis import Basis, BasisSums, make_basis
from archipelago.pipeline.closedform.head import Head, fit_head, fit_ridge, left_out_head_scores
from archipelago.pipeline.closedform.knowledge import Knowledge, KnownTask
from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.sums import Sums

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
