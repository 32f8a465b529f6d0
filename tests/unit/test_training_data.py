"""Batches, views and trunk activations are pure functions; the learning rate; the prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from archipelago.pipeline.methods import StageContext, build_method
from archipelago.pipeline.model import backbone as model_backbone
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import TrainingSettings
from archipelago.pipeline.training import objectives
from archipelago.pipeline.training.loop import learning_rate, planned_steps
from archipelago.pipeline.training.objectives import Classification, Prompts
from archipelago.pipeline.training.trunk import CACHE_DTYPE, TrunkCache, batch_rows, gather
from archipelago.pipeline.training.views import ASPECT, Views
from tests.unit.tiny_clip import images, settings, tiny_backbone

PIXELS = images(70)


def _views(seed: int = 0, task: str = "a", rows: int = 70, **options: object) -> Views:
    return Views(TrainingSettings(**options), seed, task, rows)


def test_batches_walk_every_row_once_an_epoch() -> None:
    rows = np.concatenate([batch_rows(0, 1, 0, 10, step, 4) for step in range(5)])
    assert sorted(rows[:10, 0]) == list(range(10)) == sorted(rows[10:, 0])
    assert rows[:, 1].tolist() == [0] * 10 + [1] * 10
    assert rows[:10, 0].tolist() != rows[10:, 0].tolist(), "another order every epoch"
    longer = batch_rows(0, 1, 0, 3, 0, 10)
    assert np.bincount(longer[:, 1]).tolist() == [3, 3, 3, 1], "a batch may span many epochs"


def test_a_batch_depends_on_its_arguments_only() -> None:
    reference = batch_rows(5, 2, 0, 40, 7, 16)
    for step in (9, 0, 7, 3):  # whatever was asked before
        again = batch_rows(5, 2, 0, 40, step, 16)
        assert np.array_equal(again, reference) == (step == 7)
    for other in [(6, 2, 0), (5, 3, 0), (5, 2, 1)]:
        assert not np.array_equal(batch_rows(*other, 40, 7, 16), reference)


def test_views_depend_on_seed_task_view_and_row_only() -> None:
    reference = _views().boxes(3)
    again = _views()
    again.boxes(1)
    assert np.array_equal(again.boxes(3), reference)
    for other in (_views(seed=1).boxes(3), _views(task="b").boxes(3), _views().boxes(2)):
        assert not np.array_equal(other, reference)
    assert len(np.unique(reference, axis=0)) == 70, "another crop for every row"


def test_crops_keep_their_share_and_stay_inside() -> None:
    boxes = _views(crop=(0.3, 0.6), rows=5000).boxes(0)
    area = boxes[:, 2] * boxes[:, 3]
    assert area.min() > 0.29 and area.max() < 0.601
    assert (np.abs(boxes[:, :2]) + boxes[:, 2:4] <= 1 + 1e-6).all()
    ratio = boxes[:, 2] / boxes[:, 3]
    assert ratio.min() > ASPECT[0] - 1e-3 and ratio.max() < ASPECT[1] + 1e-3
    assert (boxes[:, 4] == 1).all()
    flipped = _views(flip=True, rows=5000).boxes(0)[:, 4]
    assert set(flipped) == {-1.0, 1.0} and abs(flipped.mean()) < 0.1


def test_crops_are_crops() -> None:
    pixels, views = torch.rand(2, 3, 32, 32), _views()
    whole = np.array([[0, 0, 1, 1, 1]] * 2, np.float32)
    assert torch.allclose(views.apply(pixels, whole), pixels, atol=1e-5)
    mirrored = whole * [1, 1, 1, 1, -1]
    assert torch.allclose(
        views.apply(pixels, mirrored.astype(np.float32)), pixels.flip(3), atol=1e-5
    )
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    quarter = views.apply(ramp, np.array([[0.5, 0, 0.5, 1, 1]], np.float32))
    assert quarter.min() > -0.05 and quarter.max() > 0.95, "the right half"


def _cache(budget: float, rows: np.ndarray, count: int = 3, first: int = 2) -> TrunkCache:
    backbone = tiny_backbone()
    return TrunkCache(
        backbone,
        first,
        lambda r: PIXELS[torch.from_numpy(r)].numpy(),
        rows,
        _views(),
        count,
        budget,
    )


@pytest.mark.parametrize("first", [0, 2])
def test_what_fits_the_budget_is_kept_and_the_rest_computed_when_it_is_asked_for(
    first: int,
) -> None:
    rows = np.arange(3, 70)
    one = _cache(0.0, rows, first=first).shape
    room = 100 * CACHE_DTYPE.itemsize * int(np.prod(one)) / 2**30
    whole, partly, none = (_cache(b, rows, first=first) for b in (1.0, room, 0.0))
    assert (whole.kept, partly.kept, none.kept) == (3 * 67, 100, 0)
    drawn = np.random.default_rng(0)
    for epoch in (0, 1, 2, 0, 4, 2, 3):
        positions = drawn.permutation(67)[:20]
        a, b, c = (cache.take(epoch, positions) for cache in (whole, partly, none))
        assert a.dtype == CACHE_DTYPE and a.shape == (20, *one)
        for other in (b, c):
            assert torch.allclose(a.float(), other.float(), rtol=2e-3, atol=2e-3)
        assert torch.equal(b, partly.take(epoch, positions)), "the same every time"
    held = {view: len(kept) for view, kept in partly._views.items()}
    assert held == {0: 67, 1: 33, 2: 0}
    assert torch.equal(whole.take(1, positions), whole.take(4, positions)), "epoch 4 sees view 1"
    assert not torch.equal(whole.take(0, positions), whole.take(1, positions))


@torch.no_grad()
def test_the_plain_view_is_the_image_as_it_is() -> None:
    cache, tower = _cache(1.0, np.arange(5)), tiny_backbone().image
    expected = tower.run(tower.embed(cache.backbone.normalise(PIXELS[:5])), 0, 2)
    assert torch.allclose(cache[:].float(), expected, rtol=2e-3, atol=2e-3)
    first = cache.take(0, np.arange(5))
    assert not torch.allclose(first.float(), expected, rtol=2e-3, atol=2e-3)
    assert len(cache._views[None]) == 0, "it is not asked for often enough to be kept"
    fold = _cache(1.0, np.arange(5), count=0)
    assert torch.equal(fold[1:3], cache[:][1:3]) and len(fold._views[None]) == 5


def test_a_batch_over_two_epochs_keeps_its_order() -> None:
    cache = _cache(1.0, np.arange(10))
    chosen = np.array([[3, 0], [9, 1], [1, 0], [2, 1], [0, 2]])
    got = gather(cache, chosen)
    for row, (position, epoch) in enumerate(chosen):
        assert torch.equal(got[row], cache.take(int(epoch), np.array([position]))[0])


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.05) and max(rates) == rates[9] == rates[10] == 0.5
    assert (np.diff(rates[10:]) < 0).all() and 0 < rates[-1] < 1e-3
    assert 0 < learning_rate(0, 3, 1000, 0.5) <= 0.5, "a warm-up never outlasts half of the stage"
    assert learning_rate(0, 1, 0, 0.5) == 0.5


def test_small_domains_end_after_a_number_of_passes() -> None:
    settings = TrainingSettings(steps=100, batch_size=10, max_epochs=4)
    assert planned_steps(settings, 50) == 20 and planned_steps(settings, 5000) == 100
    assert planned_steps(settings, 1) == 1
    endless = TrainingSettings(steps=100, batch_size=10, max_epochs=0)
    assert planned_steps(endless, 1) == 100


@torch.no_grad()
def test_prompts_enter_at_the_first_adapted_block() -> None:
    backbone = tiny_backbone()
    pairs = Prompts(backbone, 2, ["cat", "dog"], ["a {}", "one very nice {}"])
    for (x, position), template in zip(pairs, ["a {}", "one very nice {}"], strict=True):
        rest = backbone.text.finish(backbone.text.pooled(x, 2, None, position))
        features = torch.nn.functional.normalize(rest, dim=-1)
        expected = backbone.encode_classes(["cat", "dog"], [template])
        assert torch.allclose(features, expected, atol=1e-6)


@torch.no_grad()
def test_prompts_beyond_the_budget_are_encoded_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = tiny_backbone()
    names, templates = [f"thing {i}" for i in range(7)], ["a {}", "one {}", "the {}"]
    kept = Prompts(backbone, 2, names, templates)
    one = kept[0][0].nbytes
    some = Prompts(backbone, 2, names, templates, budget=one)
    monkeypatch.setattr(objectives, "PROMPTS", 3)
    for at in (0, 1, 2, -1, 0):
        for a, b in zip(kept[at], some[at], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    assert list(some._kept) == [0] and sorted(kept._kept) == [0, 1, 2]
    assert some[0][0] is some[0][0] and kept[-1][0] is kept[2][0]
    with pytest.raises(IndexError):
        some[3]
    whole = backbone.encode_classes(names, templates)
    monkeypatch.setattr(model_backbone, "PROMPTS", 6)  # two classes at a time
    asked: list[int] = []
    real = type(backbone).encode_text

    def encode_text(self: Any, tokens: torch.Tensor, delta: Any = None) -> torch.Tensor:
        asked.append(len(tokens))
        return real(self, tokens, delta)

    monkeypatch.setattr(type(backbone), "encode_text", encode_text)
    assert torch.allclose(backbone.encode_classes(names, templates), whole, atol=1e-6)
    assert asked == [6, 6, 6, 3]


def test_prompts_that_a_step_asks_for_first_are_exact() -> None:
    backbone = tiny_backbone()
    backbone.kernels = Kernels(precision="bf16")
    before, within = (Prompts(backbone, 2, ["cat", "dog"], ["a {}"]) for _ in range(2))
    expected = before[0][0]
    with backbone.kernels.training():
        assert torch.equal(within[0][0], expected)


@torch.no_grad()
def test_class_scores_are_exact_in_a_step_of_half_precision() -> None:
    """Features may be rounded, their products may not: `exp(s)` makes a hundredth a whole logit."""
    backbone = tiny_backbone()
    adapter = build_method(settings(), None, backbone).adapter(StageContext(0, "a"))
    text = Prompts(backbone, 2, [f"thing {i}" for i in range(7)], ["a {}"])
    held, labels = torch.zeros(1, 17, 48), torch.zeros(1, dtype=torch.int64)
    task = Classification(_cache(1.0, np.arange(5)), labels, held, labels, text, backbone)
    x_BLD = _cache(1.0, np.arange(5))[:].float()
    with Kernels(precision="bf16").training():
        v_BF, u_CF = adapter.image(x_BLD), adapter.text(*text[0])
        got = task.predict(adapter, v_BF, 0, 0)
        rounded = v_BF @ u_CF.T
    assert got.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    exact = v_BF.double() @ u_CF.double().T
    assert (got - exact).abs().max() < 1e-6 < 1e-4 < (rounded - exact).abs().max()
