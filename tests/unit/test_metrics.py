"""The metrics reproduce published figures, and say NaN where nothing is defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from archipelago.pipeline.evaluation import metrics

# Continual fine-tuning of CLIP ViT-B/16 on MTIL, Order I: rows = after Aircraft, Caltech101,
# CIFAR100, DTD, EuroSAT, Flowers, Food, MNIST, OxfordPet, StanfordCars, SUN397; columns likewise.
# Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language
# Models", ICCV 2023 (arXiv 2303.06628), the matrix behind the "Continual FT" row of its MTIL table.
FINETUNE = [
    [62.62, 67.11, 42.96, 30.80, 45.96, 46.20, 64.23, 43.06, 69.28, 26.60, 51.83],
    [15.69, 93.38, 49.00, 31.33, 36.20, 32.88, 60.51, 48.02, 65.79, 15.83, 51.22],
    [24.42, 90.38, 88.78, 34.15, 36.31, 32.54, 57.83, 46.26, 73.26, 22.88, 54.61],
    [25.98, 89.63, 78.92, 76.91, 24.00, 34.61, 60.85, 49.12, 70.13, 23.36, 52.55],
    [22.65, 88.08, 70.56, 68.99, 98.81, 28.79, 49.23, 41.44, 60.04, 21.86, 46.64],
    [22.86, 88.08, 70.77, 69.68, 98.46, 96.06, 53.70, 39.00, 64.57, 22.56, 48.29],
    [27.42, 90.21, 76.69, 72.50, 97.96, 89.30, 92.15, 41.84, 73.45, 35.83, 57.12],
    [2.28, 33.93, 4.89, 20.00, 21.76, 11.07, 7.87, 99.59, 10.25, 2.35, 17.98],
    [17.88, 80.65, 43.92, 51.28, 74.15, 61.98, 80.55, 99.60, 93.32, 13.24, 39.45],
    [27.30, 85.43, 57.25, 61.81, 89.65, 65.78, 82.53, 99.51, 93.24, 87.61, 46.22],
    [31.02, 89.29, 65.83, 67.34, 88.94, 71.08, 85.56, 99.55, 92.91, 77.25, 81.14],
]
PRINTED = {
    "transfer": [67.1, 46.0, 32.1, 35.6, 35.0, 57.7, 44.1, 60.8, 20.5, 46.6],
    "average": [25.5, 81.5, 59.1, 53.2, 64.7, 51.8, 63.2, 64.3, 69.7, 31.8, 49.7],
    "last": [31.0, 89.3, 65.8, 67.3, 88.9, 71.1, 85.6, 99.6, 92.9, 77.3, 81.1],
}
SCALARS = {"transfer": 44.6, "average": 55.9, "last": 77.3}

# Zero-shot CLIP on the same eleven sets: a constant matrix, printed as 69.4 / 65.3 / 65.3.
ZERO_SHOT = [24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2]


@pytest.mark.parametrize("name", ["transfer", "average", "last"])
def test_published_matrix(name: str) -> None:
    score = getattr(metrics, name)(FINETUNE)
    columns = score.columns[1:] if name == "transfer" else score.columns
    assert np.abs(columns - PRINTED[name]).max() <= 0.06  # printed with one digit
    assert score.mean == pytest.approx(SCALARS[name], abs=0.051)


def test_published_zero_shot_row() -> None:
    matrix = [ZERO_SHOT] * 11
    printed = [
        metrics.transfer(matrix).mean,
        metrics.average(matrix).mean,
        metrics.last(matrix).mean,
    ]
    assert printed == pytest.approx([69.4, 65.3, 65.3], abs=0.051)
    assert metrics.forgetting(matrix) == metrics.bwt(matrix) == 0.0


def test_delta_m_of_the_paper() -> None:
    ours, base = [74.0, 17.2, 60.3, 63.3, 54.9], [60.1, 15.4, 51.0, 63.2, 50.8]
    gain = metrics.delta_m(ours, base, [False, True, False, False, False])
    assert gain == pytest.approx(7.58, abs=0.005)


def test_forgetting_and_bwt_by_hand() -> None:
    matrix = [[80.0, 10.0, 10.0], [90.0, 70.0, 10.0], [60.0, 75.0, 50.0]]
    assert metrics.forgetting(matrix) == pytest.approx((90 - 60 + 70 - 75) / 2)
    assert metrics.bwt(matrix) == pytest.approx((60 - 80 + 75 - 70) / 2)


def test_partial_matrix_equals_its_rows_padded_with_nan() -> None:
    rows = np.array(FINETUNE)[:4]
    padded = np.full((11, 11), np.nan)
    padded[:4] = rows
    for name in ("transfer", "average", "last"):
        short, long = getattr(metrics, name)(rows), getattr(metrics, name)(padded)
        np.testing.assert_array_equal(short.columns, long.columns)
        assert short.mean == long.mean
    assert metrics.last(rows).mean == pytest.approx(rows[3].mean())
    assert metrics.transfer(rows).columns[10] == pytest.approx(rows[:, 10].mean())
    assert metrics.forgetting(rows) == metrics.forgetting(padded) > 0


def test_undefined_is_nan_and_silent(recwarn: pytest.WarningsRecorder) -> None:
    one = [[50.0]]
    assert math.isnan(metrics.transfer(one).mean) and metrics.last(one).mean == 50.0
    assert math.isnan(metrics.forgetting(one)) and math.isnan(metrics.bwt(one))
    nothing = np.full((3, 3), np.nan)
    assert math.isnan(metrics.average(nothing).mean) and math.isnan(metrics.last(nothing).mean)
    holes = [[50.0, np.nan], [40.0, 60.0]]  # a task appended after the first stage
    assert math.isnan(metrics.transfer(holes).columns[1])
    assert metrics.average(holes).columns.tolist() == [45.0, 60.0]
    assert not recwarn.list
    with pytest.raises(ValueError, match="stages <= tasks"):
        metrics.last(np.zeros((3, 2)))


def _brute(gains: list[np.ndarray], samples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    draws = [
        [gain[generator.integers(0, len(gain), len(gain))].mean() for gain in gains]
        for _ in range(samples)
    ]
    return np.mean(draws, axis=1)


def test_bootstrap_agrees_with_resampling_image_by_image() -> None:
    generator = np.random.default_rng(3)
    gains = [
        generator.choice([-100.0, 0.0, 50.0, 100.0], n, p=[0.1, 0.5, 0.2, 0.2]) for n in (80, 300)
    ]
    interval = metrics.paired_bootstrap(gains, samples=4000, seed=1)
    low, high = np.quantile(_brute(gains, 4000, 2), [0.025, 0.975])
    assert interval.mean == pytest.approx(np.mean([gain.mean() for gain in gains]))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.5)
    assert interval == metrics.paired_bootstrap(gains, samples=4000, seed=1)


def test_pairing_removes_shared_difficulty() -> None:
    generator = np.random.default_rng(0)
    theirs = [generator.integers(0, 2, 300)]
    ours = [theirs[0].copy()]
    ours[0][:3] = 1 - ours[0][:3]
    interval = metrics.paired_bootstrap(metrics.row_gain(ours, theirs))
    assert interval.high - interval.low < 3.0  # unpaired, it would be about 16
    same = metrics.paired_bootstrap(metrics.row_gain(theirs, theirs))
    assert same == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least one image"):
        metrics.paired_bootstrap([])


def test_transfer_gain_is_transfer_minus_zero_shot() -> None:
    generator = np.random.default_rng(5)
    sizes = [40, 60, 50]
    correct = [[generator.integers(0, 2, n) for n in sizes] for _ in sizes]
    zero_shot = [generator.integers(0, 2, n) for n in sizes]
    matrix = [[100.0 * image.mean() for image in row] for row in correct]
    expected = np.mean(
        metrics.transfer(matrix).columns[1:] - [100 * z.mean() for z in zero_shot[1:]]
    )
    gains = metrics.transfer_gain(correct, zero_shot)
    assert [len(gain) for gain in gains] == sizes[1:]
    assert metrics.paired_bootstrap(gains).mean == pytest.approx(expected)


def test_auroc_counts_pairs_and_ties() -> None:
    generator = np.random.default_rng(1)
    positive, negative = generator.integers(0, 6, 50), generator.integers(0, 5, 70)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert metrics.auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert metrics.auroc([1.0], [0.0]) == 1.0
    assert math.isnan(metrics.auroc([], [0.0]))


def test_calibration_error() -> None:
    assert metrics.expected_calibration_error([0.8] * 10, [1] * 8 + [0] * 2) == pytest.approx(0.0)
    assert metrics.expected_calibration_error([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)
    assert metrics.expected_calibration_error([1.0, 0.0], [0, 0]) == pytest.approx(0.5)
