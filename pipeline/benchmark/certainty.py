"""How sure a difference is: paired bootstrap over images, critical difference over streams.

Shapes: N test images of a task, K methods, M streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata, studentized_range

from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.protocol import SETTINGS
from archipelago.pipeline.evaluation.records import Records

LEVEL = 0.95
FIGURES = ("average", "last")
Images = dict[tuple[Any, ...], np.ndarray]


def images_of(records: Records, setting: str, figure: str) -> dict[str, np.ndarray]:
    """Task -> (N,) how often each test image is right: at the end, or in the mean of all stages."""
    stages = sorted(records.correct)
    rows = [records.row(stage, setting) for stage in (stages[-1:] if figure == "last" else stages)]
    found = {}
    for column, task in enumerate(records.tasks):
        known = [np.asarray(row[column], np.float64) for row in rows if row[column] is not None]
        if known:
            found[task] = np.mean(known, axis=0)
    return found


def pooled(runs: Sequence[tuple[str, int, Records]], setting: str, figure: str) -> Images:
    """(stream, seed, task) -> (N,), the mean over orders, which have the same test images.

    Args:
        runs: stream, seed and records of one method's runs.
        setting: as in `pipeline/evaluation/protocol.py`.
        figure: `average` or `last`.
    """
    found: dict[tuple[Any, ...], list[np.ndarray]] = {}
    for stream, seed, records in runs:
        for task, right in images_of(records, setting, figure).items():
            found.setdefault((stream, seed, task), []).append(right)
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def intervals(
    runs: Mapping[str, Sequence[tuple[str, int, Records]]], reference: str, samples: int
) -> list[dict[str, Any]]:
    """What every other method has more or less than the reference, points, with 95 % intervals.

    Args:
        runs: of each method, by label.
        reference: a label.
        samples: resamples of the images.
    """
    found = []
    for setting in SETTINGS:
        for figure in FIGURES:
            base = pooled(runs[reference], setting, figure)
            for label, own in runs.items():
                if label == reference:
                    continue
                theirs = pooled(own, setting, figure)
                keys = [key for key in base if key in theirs]
                if not keys:
                    continue
                gains = [100.0 * (theirs[key] - base[key]) for key in keys]
                interval = metrics.paired_bootstrap(gains, samples, 0, LEVEL)
                found.append(
                    {
                        "method": label,
                        "against": reference,
                        "setting": setting,
                        "figure": figure,
                        **interval._asdict(),
                    }
                )
    return found


def critical_difference(scores_MK: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, float]:
    """Mean ranks (K,) over streams, 1 the best, and the difference of ranks that means something.

    Nemenyi: `CD = q sqrt(K (K + 1) / 6 M)`, q the quantile of the studentised range over sqrt(2).

    Raises:
        ValueError: fewer than two streams or two methods.
    """
    streams, methods = scores_MK.shape
    if min(streams, methods) < 2:
        raise ValueError("a critical difference wants two streams and two methods")
    ranks = np.stack([rankdata(-row) for row in scores_MK]).mean(axis=0)
    q = float(studentized_range.ppf(level, methods, np.inf)) / np.sqrt(2.0)
    return ranks, q * float(np.sqrt(methods * (methods + 1) / (6.0 * streams)))


def ranking(rows: Sequence[Mapping[str, Any]], figure: str = "last") -> list[dict[str, Any]]:
    """Per setting the methods' mean ranks over streams with the critical difference."""
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    labels = list(dict.fromkeys(row["method"] for row in rows))
    found = []
    for setting in SETTINGS:
        means: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            figures = row["settings"].get(setting)
            if figures is not None and figures[figure] is not None:
                means.setdefault((row["stream"], row["method"]), []).append(figures[figure])
        everywhere = [m for m in labels if all((s, m) in means for s in streams)]
        if min(len(streams), len(everywhere)) < 2:
            continue
        scores = np.array([[np.mean(means[s, m]) for m in everywhere] for s in streams])
        ranks, difference = critical_difference(scores)
        found.append(
            {
                "setting": setting,
                "figure": figure,
                "streams": len(streams),
                "ranks": dict(zip(everywhere, ranks.tolist(), strict=True)),
                "critical_difference": difference,
            }
        )
    return found
