"""Figures of a continual run: pure numpy, no files, no model.

An accuracy matrix `A` has a row per stage and a column per task: `A[i, j]` is the accuracy on task
`j` after stage `i`, in any unit (percent in this package); NaN means "not measured". Rows still
missing at the end may be left out or be NaN: figures are then those *so far*.

A stage may teach several tasks: `learned` is then the stage of each task (default: its index).

Legend: S stages measured, N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """One figure per task (NaN where undefined) and the mean over the defined ones."""

    columns: np.ndarray
    mean: float


Learned = Sequence[int] | None


class Interval(NamedTuple):
    """A mean and the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def _matrix(accuracy: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(S, N) float64 without the trailing rows in which nothing was measured."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] > matrix.shape[1]:
        raise ValueError(f"an accuracy matrix is (stages <= tasks, tasks), not {matrix.shape}")
    measured = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    return matrix[: measured[-1] + 1] if measured.size else matrix[:0]


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none (and no warning)."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _score(columns: Sequence[float]) -> Score:
    array = np.array(columns, dtype=np.float64)
    return Score(array, _mean(array))


def _stages(count: int, learned: Learned) -> list[int]:
    """Stage in which each of `count` tasks is learned."""
    return list(range(count)) if learned is None else list(learned)


def transfer(accuracy: Sequence[Sequence[float]] | np.ndarray, learned: Learned = None) -> Score:
    """Zero-shot ability kept: mean of `A[i, j]` over the stages i before task j was learned;
    undefined for tasks of the first stage."""
    matrix = _matrix(accuracy)
    stages = _stages(np.shape(accuracy)[1], learned)
    return _score([_mean(matrix[:stage, j]) for j, stage in enumerate(stages)])


def average(accuracy: Sequence[Sequence[float]] | np.ndarray) -> Score:
    """`mean_i A[i, j]` over the stages measured so far."""
    matrix = _matrix(accuracy)
    return _score([_mean(matrix[:, j]) for j in range(np.shape(accuracy)[1])])


def last(accuracy: Sequence[Sequence[float]] | np.ndarray) -> Score:
    """The newest row of the matrix, learned and unlearned tasks alike."""
    matrix = _matrix(accuracy)
    newest = matrix[-1] if len(matrix) else np.full(np.shape(accuracy)[1], np.nan)
    return _score(newest.tolist())


def _before_the_last(matrix: np.ndarray, tasks: int, learned: Learned) -> list[tuple[int, int]]:
    """(task, its stage) of the tasks learned before the last measured stage."""
    stages = enumerate(_stages(tasks, learned))
    return [(j, stage) for j, stage in stages if stage < len(matrix) - 1]


def forgetting(accuracy: Sequence[Sequence[float]] | np.ndarray, learned: Learned = None) -> float:
    """`mean_{j<S-1} (max_{j<=i<S-1} A[i, j] - A[S-1, j])`; NaN before the second stage."""
    matrix = _matrix(accuracy)
    earlier = _before_the_last(matrix, np.shape(accuracy)[1], learned)
    drops = [np.fmax.reduce(matrix[stage:-1, j]) - matrix[-1, j] for j, stage in earlier]
    return _mean(np.array(drops))


def bwt(accuracy: Sequence[Sequence[float]] | np.ndarray, learned: Learned = None) -> float:
    """Backward transfer `mean_{j<S-1} (A[S-1, j] - A[j, j])`; NaN before the second stage."""
    matrix = _matrix(accuracy)
    earlier = _before_the_last(matrix, np.shape(accuracy)[1], learned)
    return _mean(np.array([matrix[-1, j] - matrix[stage, j] for j, stage in earlier]))


def delta_m(
    values: Sequence[float], baseline: Sequence[float], lower_is_better: Sequence[bool]
) -> float:
    """Mean relative gain over a baseline, percent (ASE); a drop gains where lower is better."""
    ours, theirs = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    sign = np.where(np.asarray(lower_is_better, dtype=bool), -1.0, 1.0)
    return float(100.0 * np.mean(sign * (ours - theirs) / theirs))


def transfer_gain(
    correct: Sequence[Sequence[np.ndarray | None]],
    zero_shot: Sequence[np.ndarray | None],
    learned: Learned = None,
) -> list[np.ndarray]:
    """Percent that every image adds to Transfer minus zero-shot, task by task (the first has none).

    `correct[i][j]` and `zero_shot[j]` hold 0/1 per image of task `j`, in the same image order;
    None = not measured, and tasks without a pair are left out.
    """
    gains = []
    for j, (frozen, stage) in enumerate(
        zip(zero_shot, _stages(len(zero_shot), learned), strict=True)
    ):
        rows = [np.asarray(row[j], np.float64) for row in correct[:stage] if row[j] is not None]
        if rows and frozen is not None:
            gains.append(100.0 * (np.mean(rows, axis=0) - np.asarray(frozen, np.float64)))
    return gains


def row_gain(
    ours: Sequence[np.ndarray | None], theirs: Sequence[np.ndarray | None]
) -> list[np.ndarray]:
    """Percent that every image adds to the difference of two rows (0/1 per image and task)."""
    return [
        100.0 * (np.asarray(a, np.float64) - np.asarray(b, np.float64))
        for a, b in zip(ours, theirs, strict=True)
        if a is not None and b is not None
    ]


def mean_over_stages(rows: Sequence[Sequence[np.ndarray | None]]) -> list[np.ndarray | None]:
    """Per task, how often each image was right over the measured stages."""
    found: list[np.ndarray | None] = []
    for column in zip(*rows, strict=True):
        measured = [np.asarray(row, np.float64) for row in column if row is not None]
        found.append(np.mean(measured, axis=0) if measured else None)
    return found


def paired_bootstrap(
    gains: Sequence[np.ndarray], samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of `mean_j mean_x gains[j][x]`; images are resampled within each task, pairs intact.

    Per-image gains take few distinct values, so resampling images is drawing how often each value
    occurs: one multinomial per task, exact and independent of the number of images.
    Raises ValueError when there is no gain to average.
    """
    if not gains or any(len(gain) == 0 for gain in gains):
        raise ValueError("a bootstrap needs at least one image in every task")
    generator = np.random.default_rng(seed)
    means = np.zeros(samples)
    for gain in gains:
        values, counts = np.unique(np.asarray(gain, np.float64), return_counts=True)
        draws = generator.multinomial(len(gain), counts / len(gain), size=samples)
        means += draws @ values / len(gain)
    means /= len(gains)
    low, high = np.quantile(means, [(1.0 - level) / 2, (1.0 + level) / 2])
    return Interval(float(np.mean([np.mean(gain) for gain in gains])), float(low), float(high))


def auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties count half; NaN if either is empty."""
    above, below = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    if not above.size or not below.size:
        return float("nan")
    wins = np.searchsorted(below, above, side="left")
    ties = np.searchsorted(below, above, side="right") - wins
    return float((wins.sum() + 0.5 * ties.sum()) / (above.size * below.size))


def expected_calibration_error(
    confidence: Sequence[float] | np.ndarray, correct: Sequence[float] | np.ndarray, bins: int = 15
) -> float:
    """Mean gap of confidence and accuracy over equal-width bins, weighted by images; in [0, 1]."""
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not sure.size:
        return float("nan")
    index = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    surplus = np.bincount(index, weights=sure - right, minlength=bins)
    return float(np.abs(surplus).sum() / sure.size)
