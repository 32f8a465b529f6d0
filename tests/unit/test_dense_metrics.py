"""Metrics of dense tasks: known values, brute-force references, and shards that add up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from archipelago.pipeline.dense import build
from archipelago.pipeline.dense.boundary import BoundaryF, matched
from archipelago.pipeline.dense.regions import THRESHOLDS
from archipelago.pipeline.streams.thinning import thin

CLASSES = {"segmentation": 4, "parts": 4, "saliency": 2, "normals": 0, "edges": 2}


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Logits that answer these labels."""
    return 9.0 * torch.nn.functional.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()


def random_batch(kind: str, count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets as stored, with ignored pixels."""
    rng = np.random.default_rng(seed)
    task = build(kind, CLASSES[kind])
    output = torch.from_numpy(rng.normal(size=(count, task.channels, size, size))).float()
    if kind == "normals":
        n = rng.normal(size=(count, size, size, 3))
        n = np.rint(127 * n / np.linalg.norm(n, axis=-1, keepdims=True))
        n[rng.random((count, size, size)) < 0.2] = 0
        return output, torch.from_numpy(n.astype(np.int8))
    labels = rng.integers(0, CLASSES[kind], (count, size, size))
    labels[rng.random(labels.shape) < 0.1] = 255
    return output, torch.from_numpy(labels.astype(np.uint8))


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_shards_add_up_to_the_whole(kind: str) -> None:
    output, targets = random_batch(kind, 7, 12, 0)
    whole, left, right = (build(kind, CLASSES[kind]).metric() for _ in range(3))
    whole.update(output, targets)
    left.update(output[:3], targets[:3])
    right.update(output[3:], targets[3:])
    left.merge(right.sums)
    assert list(left.values()) == list(whole.values())
    for name, score in whole.values().items():
        assert math.isfinite(score.value)
        assert left.values()[name].value == pytest.approx(score.value, rel=1e-12)
    with pytest.raises(ValueError, match="another metric"):
        whole.merge({"other": np.zeros(1)})


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_nothing_valid_is_not_a_number(kind: str) -> None:
    output, targets = random_batch(kind, 2, 8, 0)
    metric = build(kind, CLASSES[kind]).metric()
    metric.update(output, torch.full_like(targets, 0 if kind == "normals" else 255))
    assert all(math.isnan(score.value) for score in metric.values().values())
    assert all(math.isnan(s.value) for s in build(kind, CLASSES[kind]).metric().values().values())


def test_miou_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 1, 1], [2, 2, 255, 255]]], dtype=torch.uint8)
    answer = torch.tensor([[[0, 1, 1, 1], [2, 0, 2, 2]]])
    metric = build("segmentation", 4).metric()
    metric.update(one_hot(answer, 4), truth)
    # 0: 1 of 3, 1: 2 of 3, 2: 1 of 2; class 3 never occurs
    assert metric.values()["mIoU"].value == pytest.approx(100 * (1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert metric.values()["accuracy"].value == pytest.approx(100 * 4 / 6)
    assert not metric.values()["mIoU"].lower_is_better


def test_images_without_people_do_not_count() -> None:
    shown = torch.tensor([[[0, 0], [1, 2]]], dtype=torch.uint8)
    empty = torch.zeros(1, 2, 2, dtype=torch.uint8)
    wrong = one_hot(torch.full((1, 2, 2), 3), 4)
    metric = build("parts", 4).metric()
    metric.update(torch.cat([one_hot(shown, 4), wrong]), torch.cat([shown, empty]))
    assert metric.values()["mIoU"].value == 100.0
    segmentation = build("segmentation", 4).metric()
    segmentation.update(torch.cat([one_hot(shown, 4), wrong]), torch.cat([shown, empty]))
    assert segmentation.values()["mIoU"].value < 70


def test_saliency_is_the_maximum_of_means_over_images() -> None:
    output, targets = random_batch("saliency", 5, 9, 3)
    p = 1 / (1 + np.exp(-output[:, 0].double().numpy()))
    valid, truth = targets.numpy() != 255, targets.numpy() == 1
    iou, precision, recall = (np.zeros((len(THRESHOLDS), 5)) for _ in range(3))
    for k, threshold in enumerate(THRESHOLDS):
        for i in range(5):
            answer = (p[i] > threshold) & valid[i]
            hits = (answer & truth[i]).sum()
            iou[k, i] = hits / (answer | truth[i]).sum()
            precision[k, i] = hits / max(answer.sum(), 1)
            recall[k, i] = hits / truth[i].sum()
    P, R = precision.mean(axis=1), recall.mean(axis=1)
    metric = build("saliency", 2).metric()
    metric.update(output, targets)
    assert metric.values()["mIoU"].value == pytest.approx(100 * iou.mean(axis=1).max())
    assert metric.values()["maxF"].value == pytest.approx(100 * (2 * P * R / (P + R)).max())
    nothing = build("saliency", 2).metric()
    nothing.update(torch.full((1, 1, 4, 4), -9.0), torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert nothing.values()["mIoU"].value == 100.0  # rightly silent


def test_mean_angle_of_known_vectors() -> None:
    truth = torch.zeros(1, 2, 2, 3, dtype=torch.int8)
    truth[0, 0] = torch.tensor([0, 0, 127])
    truth[0, 1, 0] = torch.tensor([127, 0, 0])  # the fourth pixel has no normal
    output = torch.zeros(1, 3, 2, 2)
    output[0, :, 0, 0] = torch.tensor([0.0, 0.0, 5.0])
    output[0, :, 0, 1] = torch.tensor([0.0, 1.0, 1.0])
    output[0, :, 1, 0] = torch.tensor([-2.0, 0.0, 0.0])
    output[0, :, 1, 1] = torch.tensor([1.0, 0.0, 0.0])
    metric = build("normals", 0).metric()
    metric.update(output, truth)
    values = metric.values()
    assert values["mean"].value == pytest.approx((0 + 45 + 180) / 3, abs=1e-4)
    assert values["mean"].lower_is_better and values["mean"].unit == "degrees"
    assert values["within 11.25"].value == pytest.approx(100 / 3)
    assert values["rmse"].value == pytest.approx(math.sqrt((45**2 + 180**2) / 3), abs=1e-4)


def slow_thin(mask: np.ndarray) -> np.ndarray:
    """Guo and Hall's two passes, pixel by pixel as printed (p2 = north, clockwise to p9)."""
    out = np.pad(mask, 1).astype(int)
    while True:
        changed = False
        for turn in (0, 1):
            goes = []
            for y, x in zip(*np.nonzero(out), strict=True):
                p2, p3, p4, p5, p6, p7, p8, p9 = (
                    out[y - 1, x],
                    out[y - 1, x + 1],
                    out[y, x + 1],
                    out[y + 1, x + 1],
                    out[y + 1, x],
                    out[y + 1, x - 1],
                    out[y, x - 1],
                    out[y - 1, x - 1],
                )
                c = ((1 - p2) & (p3 | p4)) + ((1 - p4) & (p5 | p6))
                c += ((1 - p6) & (p7 | p8)) + ((1 - p8) & (p9 | p2))
                n = min(
                    (p9 | p2) + (p3 | p4) + (p5 | p6) + (p7 | p8),
                    (p2 | p3) + (p4 | p5) + (p6 | p7) + (p8 | p9),
                )
                m = (p6 | p7 | (1 - p9)) & p8 if turn == 0 else (p2 | p3 | (1 - p5)) & p4
                if c == 1 and 2 <= n <= 3 and m == 0:
                    goes.append((y, x))
            for place in goes:
                out[place] = 0
            changed |= bool(goes)
        if not changed:
            return out[1:-1, 1:-1].astype(bool)


def blobs(seed: int, size: int = 20) -> np.ndarray:
    """Smooth random regions."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    for axis in (0, 1):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise > 0.5


def test_thinning_is_the_printed_algorithm() -> None:
    from scipy.ndimage import label

    masks = np.stack([blobs(seed) for seed in range(8)])
    thinned = thin(masks)
    for mask, line in zip(masks, thinned, strict=True):
        assert (line == slow_thin(mask)).all()
        eight = np.ones((3, 3))
        assert label(mask, eight)[1] == label(line, eight)[1] and not (line & ~mask).any()
    bar = np.zeros((9, 20), bool)
    bar[2:7, 2:18] = True
    assert (thin(bar).sum(axis=0) <= 1).all() and thin(bar)[4].sum() >= 10


def slow_matched(answer: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """Largest matching by augmenting paths, one answer after another."""
    a, t = np.argwhere(answer), np.argwhere(truth)
    owner: dict[int, int] = {}

    def find(i: int, tried: set[int]) -> bool:
        for j in range(len(t)):
            if j not in tried and np.hypot(*(a[i] - t[j])) <= reach + 1e-9:
                tried.add(j)
                if j not in owner or find(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    return sum(find(i, set()) for i in range(len(a)))


@pytest.mark.parametrize("reach", [1.0, math.sqrt(2.0), 2.5])
def test_matching_is_the_largest_one_to_one(reach: float) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        answer, truth = (rng.random((2, 11, 14)) < 0.25)[:]
        assert matched(answer, truth, reach) == slow_matched(answer, truth, reach)
    assert matched(np.zeros((4, 4), bool), np.ones((4, 4), bool), 1.0) == 0


def test_ods_f_against_brute_force() -> None:
    truth = np.stack([thin(blobs(seed, 15)) for seed in range(2)])
    rng = np.random.default_rng(0)
    p = np.clip(0.6 * np.roll(truth, 1, axis=2) + 0.5 * rng.random(truth.shape), 0.001, 0.999)
    metric = BoundaryF(thresholds=5)
    metric.update(
        torch.from_numpy(np.log(p / (1 - p)))[:, None], torch.from_numpy(truth.astype(np.uint8))
    )
    best = (0.0, 0.0, 0.0)
    for threshold in (np.arange(5) + 0.5) / 5:
        lines = [slow_thin(image > threshold) for image in p]
        wanted = [slow_thin(image) for image in truth]
        hits = sum(slow_matched(a, t, math.sqrt(2)) for a, t in zip(lines, wanted, strict=True))
        precision = hits / max(sum(line.sum() for line in lines), 1)
        recall = hits / sum(line.sum() for line in wanted)
        best = max(best, (2 * precision * recall / (precision + recall + 1e-12), precision, recall))
    values = metric.values()
    assert [values[n].value for n in ("odsF", "precision", "recall")] == pytest.approx(
        [100 * v for v in best]
    )
    assert 30 < values["odsF"].value < 100
    perfect = BoundaryF()
    perfect.update(
        torch.from_numpy(np.where(truth, 9.0, -9.0))[:, None],
        torch.from_numpy(truth.astype(np.uint8)),
    )
    assert perfect.values()["odsF"].value == 100.0
