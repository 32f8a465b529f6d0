"""The growing model: what was learned never changes, and a batch is only a batch."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import ExpertGroup, expert_shapes
from archipelago.pipeline.model.growing import GrowingModel
from archipelago.pipeline.model.mix import TaskMix
from archipelago.pipeline.settings import ExpertSettings
from tests.unit.tiny_clip import images, randomise, tiny_backbone

TASKS = ["a", "b", "c", "d", "e"]
CLASSES, TEMPLATES = ["cat", "dog", "red bus"], ["a photo of a {}.", "a {} drawn"]
# Two layouts: tensors of odd sizes land on other addresses once they are stacked.
SHAPES: dict[str, dict[str, Any]] = {
    "lora": {"count": 4, "rank": 4},
    "odd": {"count": 3, "rank": 3, "first_block": 1, "router": "token", "active": 2},
    "bottleneck": {"count": 5, "rank": 1, "kind": "bottleneck", "first_block": 0},
    "no-text": {"count": 2, "rank": 2, "text": "off"},
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def _learn(model: GrowingModel, index: int) -> None:
    """Learn task `index`; b borrows from a, d from b and c."""
    own, borrowed = TASKS[index], {"b": ["a"], "d": ["c", "b"]}.get(TASKS[index], [])
    names = (own, *borrowed)
    weights = {}
    for name, shape in model.shapes.items():
        weights[name] = 0.4 * torch.randn(
            len(names), shape.blocks, generator=torch.Generator().manual_seed(index)
        )
        weights[name][0] = 1.0
    group = randomise(ExpertGroup(model.shapes), seed=10 + index)
    model.add(own, group, TaskMix(names, weights))


def _model(backbone: Backbone, count: int, options: dict[str, Any]) -> GrowingModel:
    model = GrowingModel(backbone, expert_shapes(backbone, ExpertSettings(**options)))
    for index in range(count):
        _learn(model, index)
    return model


def _logits(model: GrowingModel, pixels: Tensor, task: str | None) -> Tensor:
    v = model.encode_image(pixels, model.mix([task] * len(pixels)))
    return model.logits(v, model.encode_classes(CLASSES, TEMPLATES, task))


def _digest(model: GrowingModel, task: str) -> str:
    at, digest = model.index[task], hashlib.sha256()
    for encoder in model.shapes:
        for key in ("A", "B", "W"):
            digest.update(model._stack(encoder)[key][at].numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_learned_function_never_changes_a_bit(
    backbone: Backbone, options: dict[str, Any]
) -> None:
    pixels = backbone.normalise(images(6))
    model = _model(backbone, 0, options)
    frozen = _logits(model, pixels, None)
    logits: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    for index, task in enumerate(TASKS):
        _learn(model, index)
        logits[task], digests[task] = _logits(model, pixels, task), _digest(model, task)
        for known in logits:
            assert torch.equal(_logits(model, pixels, known), logits[known]), (known, task)
            assert _digest(model, known) == digests[known]
        assert torch.equal(_logits(model, pixels, None), frozen)
    different = torch.stack(list(logits.values()))
    assert torch.pdist(different.flatten(1)).min() > 1e-2, "the functions differ from each other"


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_mixed_batches_agree_with_uniform_ones(backbone: Backbone, options: dict[str, Any]) -> None:
    model, pixels = _model(backbone, 5, options), backbone.normalise(images(12))
    tasks = ["d", None, "a", "e", "b", "b", None, "c", "d", "a", "e", "c"]
    classes = {t: model.encode_classes(CLASSES, TEMPLATES, t) for t in set(tasks)}
    mixed = model.encode_image(pixels, model.mix(tasks))
    for row, task in enumerate(tasks):
        uniform = _logits(model, pixels, task)[row]
        got = model.logits(mixed[row : row + 1], classes[task])[0]
        assert (got - uniform).abs().max() < 1e-4
        margin = uniform.topk(2).values
        if margin[0] - margin[1] > 2e-4:
            assert got.argmax() == uniform.argmax()
        if task is not None:
            assert (uniform - _logits(model, pixels, None)[row]).abs().max() > 1e-3


@torch.no_grad()
def test_an_image_does_not_feel_its_batch(backbone: Backbone) -> None:
    model, pixels = _model(backbone, 5, SHAPES["lora"]), backbone.normalise(images(8))
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    tasks: list[str | None] = ["d", None, "a", "e", "b", "b", "c", "d"]
    whole = model.encode_image(pixels, model.mix(tasks))
    for row, task in enumerate(tasks):
        alone = model.encode_image(pixels[row : row + 1], model.mix([task]))
        assert (alone[0] - whole[row]).abs().max() < 1e-5
        company = model.encode_image(pixels[[row, 0]], model.mix([task, "e"]))
        assert (company[0] - whole[row]).abs().max() < 1e-5
    shuffled = model.encode_image(pixels[order], model.mix([tasks[int(i)] for i in order]))
    assert (shuffled - whole[order]).abs().max() < 1e-5


@torch.no_grad()
def test_the_mix_is_the_weighted_sum_of_its_groups(backbone: Backbone) -> None:
    model = _model(backbone, 4, SHAPES["lora"])
    pixels, mix = backbone.normalise(images(3)), model.mixes["d"]
    groups = {t: randomise(ExpertGroup(model.shapes), 10 + TASKS.index(t)) for t in mix.groups}
    assert mix.groups == ("d", "c", "b")

    def delta(block: int, h: Tensor, q: Tensor) -> Tensor | None:
        if block < 2:
            return None
        parts = [groups[t].image(block, h, q) for t in mix.groups]
        return sum(p * w for p, w in zip(parts, mix.weights["image"][:, block - 2], strict=True))

    expected = backbone.encode_image(pixels, delta)
    assert torch.allclose(model.encode_image(pixels, model.mix(["d"] * 3)), expected, atol=1e-6)


@torch.no_grad()
def test_tokens_of_the_trunk_continue_to_the_same_features(backbone: Backbone) -> None:
    model, pixels = _model(backbone, 3, SHAPES["lora"]), backbone.normalise(images(4))
    mix = model.mix(["a", "c", None, "b"])
    trunk = backbone.image.run(backbone.image.embed(pixels), 0, 2)
    assert torch.equal(model.encode_tokens(trunk, mix), model.encode_image(pixels, mix))


def test_router_shape_is_independent_of_the_number_of_tasks(backbone: Backbone) -> None:
    model = _model(backbone, 5, SHAPES["lora"])
    assert {tuple(part.shape) for part in model._parts["image"]["W"]} == {(2, 4, 48)}
    sizes = {randomise(ExpertGroup(model.shapes), i).parameter_count() for i in range(5)}
    assert len(sizes) == 1


def test_what_cannot_be_added(backbone: Backbone) -> None:
    model = _model(backbone, 2, SHAPES["lora"])
    ones = {name: torch.ones(1, shape.blocks) for name, shape in model.shapes.items()}
    group = randomise(ExpertGroup(model.shapes), 0)
    with pytest.raises(ValueError, match="exists already"):
        model.add("a", group, TaskMix(("a",), ones))
    with pytest.raises(ValueError, match="unknown groups"):
        model.add("z", group, TaskMix(("z", "y"), ones))
    other = ExpertGroup(expert_shapes(backbone, ExpertSettings(count=2, rank=2)))
    with pytest.raises(ValueError, match="another shape"):
        model.add("z", other, TaskMix(("z",), ones))
    with torch.no_grad():
        group.image.B[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"image\.B is not finite"):
        model.add("z", group, TaskMix(("z",), ones))
    assert model.tasks == ["a", "b"]
