"""Heads and losses of dense tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from archipelago.pipeline.dense import build, kinds
from archipelago.pipeline.dense.head import DenseHead
from archipelago.pipeline.dense.losses import balanced_bce, normals_loss
from archipelago.pipeline.dense.probe import fit_head, judge_head
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.scenes import TASKS, render
from archipelago.pipeline.streams.targets import KINDS
from tests.unit.test_dense_metrics import CLASSES, random_batch


def test_the_kinds_are_those_of_the_streams() -> None:
    assert set(kinds.known()) == set(KINDS) == set(CLASSES)
    with pytest.raises(
        UserError, match=r"dense task=depth: unknown; choose one of edges, normals, parts"
    ):
        build("depth", 3)


@pytest.mark.parametrize(("grid", "size"), [(8, 64), (14, 224), (7, 224), (16, 224)])
def test_heads_answer_at_the_input_s_resolution(grid: int, size: int) -> None:
    head = DenseHead([24, 32], grid, size, 5, channels=16)
    tokens = [torch.randn(2, grid * grid + 1, width) for width in (24, 32)]
    out = head(tokens)
    assert out.shape == (2, 5, size, size)
    alone = head([x[1:] for x in tokens])
    assert torch.allclose(out[1:], alone, atol=1e-5)
    with pytest.raises(ValueError, match="at most 3"):
        DenseHead([24], 4, 7, 5)


def test_a_head_keeps_places() -> None:
    """A token's change moves the map around its patch and leaves far places alone."""
    torch.manual_seed(0)
    head = DenseHead([16], 8, 64, 1, channels=32)
    x = torch.randn(1, 65, 16)
    y = x.clone()
    y[0, 1 + 8 * 2 + 5] = torch.randn(16)  # row 2, column 5
    change = (head([x]) - head([y]))[0, 0].abs()
    rows, columns = torch.nonzero(change > 1e-6, as_tuple=True)
    assert change[16:24, 40:48].min() > 0
    assert rows.min() >= 16 - 12 and rows.max() < 24 + 12
    assert columns.min() >= 40 - 12 and columns.max() < 48 + 12


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_losses_skip_what_is_ignored(kind: str) -> None:
    task = build(kind, CLASSES[kind])
    output, targets = random_batch(kind, 3, 8, 1)
    output.requires_grad_()
    loss = task.loss(output, targets)
    (gradient,) = torch.autograd.grad(loss, output)
    ignored = (targets == 0).all(-1) if kind == "normals" else targets == 255
    assert loss.ndim == 0 and loss > 0 and ignored.any()
    assert (gradient.permute(0, 2, 3, 1)[ignored] == 0).all()
    assert (gradient.permute(0, 2, 3, 1)[~ignored].abs().sum(-1) > 0).all()
    nothing = task.loss(output, torch.full_like(targets, 0 if kind == "normals" else 255))
    (gradient,) = torch.autograd.grad(nothing, output)
    assert nothing == 0 and (gradient == 0).all()


def test_loss_values() -> None:
    z = torch.tensor([2.0, -1.0, 0.5, 9.0]).view(1, 1, 2, 2)
    y = torch.tensor([1, 0, 0, 255], dtype=torch.uint8).view(1, 2, 2)

    def softplus(value: float) -> float:
        return math.log1p(math.exp(value))

    positive, negative = softplus(-2.0), softplus(-1.0) + softplus(0.5)
    fixed = (0.95 * positive + 0.05 * negative) / 3
    assert balanced_bce(z, y, 0.95).item() == pytest.approx(fixed, rel=1e-5)
    assert build("edges", 2).loss(z, y).item() == pytest.approx(fixed, rel=1e-5)
    balanced = (2 / 3 * positive + 1 / 3 * negative) / 3
    assert build("saliency", 2).loss(z, y).item() == pytest.approx(balanced, rel=1e-5)
    v = torch.tensor([0.0, 3.0, 4.0]).view(1, 3, 1, 1)
    n = torch.tensor([0, 0, 127], dtype=torch.int8).view(1, 1, 1, 3)
    assert normals_loss(v, n).item() == pytest.approx((0.6 + 0.2) / 3, abs=1e-6)
    assert normals_loss(v, n, "cosine").item() == pytest.approx(0.2, abs=1e-6)
    logits = torch.randn(2, 4, 3, 3)
    labels = torch.randint(1, 4, (2, 3, 3))
    expected = F.cross_entropy(logits, labels).item()
    assert build("segmentation", 4).loss(logits, labels.to(torch.uint8)).item() == pytest.approx(
        expected
    )
    both = build("parts", 4).loss(
        torch.cat([logits, logits]), torch.cat([labels, torch.zeros_like(labels)]).to(torch.uint8)
    )
    assert both.item() == pytest.approx(expected)  # the images without parts weigh nothing


def test_every_head_learns_from_frozen_tokens() -> None:
    """A few steps on a few scenes, whose pixels are the tokens: the loss falls, figures rise."""
    torch.manual_seed(0)
    pairs = [render(0, "train", index) for index in range(12)]
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).float() / 255 - 0.5
    patches = images.view(12, 8, 8, 8, 8, 3).transpose(2, 3).reshape(12, 64, 192)
    tokens = torch.cat([torch.zeros(12, 1, 192), patches], dim=1)
    for target in TASKS:
        task = build(target.kind, target.classes)
        truth = torch.from_numpy(np.stack([targets[target.name] for _, targets in pairs]))
        head = task.head([192], 8, 64, 16)
        before = next(iter(judge_head(task, head, [tokens], truth).values().values()))
        losses = fit_head(task, head, [tokens], truth, steps=18, batch=6, learning_rate=8e-3)
        after = next(iter(judge_head(task, head, [tokens], truth).values().values()))
        better = before.value - after.value if after.lower_is_better else after.value - before.value
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3]), target.name
        assert better > 3, (target.name, before, after)
