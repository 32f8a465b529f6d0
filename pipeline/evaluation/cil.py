"""Class-incremental figures of a stream whose one domain was cut into steps of classes.

After each stage every test image of the steps so far is asked for among all their classes; the
accuracy of a stage is over these images, whichever step they are of.

Shapes: S stages, N tasks, n images of a task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.protocol import CIL
from archipelago.pipeline.evaluation.records import Records


def cil(records: Records) -> dict[str, Any] | None:
    """Setting `cil` of a report, None where nothing was cut or the method has no answer in it.

    `average` is the mean over stages of their accuracies, `last` that of the newest one. There is
    no Transfer: nobody asks for a class that was not learned.
    """
    matrix = records.matrix(CIL)
    if np.isnan(matrix).all():
        return None
    images = np.array([count or 0 for count in records.images()], np.float64)
    measured = ~np.isnan(matrix).all(axis=1)
    accuracy = (np.nan_to_num(matrix) @ images)[measured] / (~np.isnan(matrix) @ images)[measured]
    rows = [records.row(int(stage), CIL) for stage in np.flatnonzero(measured)]
    unknown = [None] * len(matrix)
    return {
        "matrix": matrix,
        "transfer": None,
        "average": float(accuracy.mean()),
        "last": float(accuracy[-1]),
        "zero_shot": records.zero_row("xtail"),
        "zero_shot_debiased": records.zero_row("xtail/debiased"),
        "seen_acceptance": unknown,
        "unseen_auroc": unknown,
        "intervals": {"average": _interval(records, rows), "last": _interval(records, rows[-1:])},
    }


def _interval(records: Records, rows: list[list[np.ndarray | None]]) -> list[float] | None:
    """Interval of the mean over stages of their accuracies, images resampled within each step."""
    total: dict[int, np.ndarray] = {}
    for row in rows:
        known = {
            j: np.asarray(right, np.float64) for j, right in enumerate(row) if right is not None
        }
        count = sum(map(len, known.values()))
        for j, right in known.items():
            total[j] = total.get(j, 0.0) + right / count / len(rows)
    if not total:
        return None
    # What each image adds to the figure, as the mean over tasks of means over images wants it.
    gains = [100.0 * len(total) * len(share) * share for share in total.values()]
    samples = records.run["config"]["evaluation"]["bootstrap"]
    found = metrics.paired_bootstrap(gains, samples, records.run.get("seed") or 0)
    return [found.low, found.high]
