"""Each method on the one contract, and what an adapter does with its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from archipelago.pipeline import handbook
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import (
    Function,
    Method,
    Neighbour,
    StageContext,
    build_method,
    method_class,
    method_options,
    methods,
)
from archipelago.pipeline.methods.trge import GroupAdapter, Trge, read_neighbours
from archipelago.pipeline.methods.tuned import TunedTowers
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.settings import MethodSettings
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.training.objectives import Judgement, Prompts
from archipelago.pipeline.training.stage import prune
from tests.unit.tiny_clip import images, randomise, settings, tiny_backbone

CLASSES, TEMPLATES = ["cat", "dog", "red bus"], ["a photo of a {}.", "a {} drawn"]
EVERY = list(methods.known())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def _method(backbone: Backbone | None, name: str, **parts: Any) -> Method:
    return build_method(settings(**({"method": {"name": name}} | parts)), None, backbone)


def _change(adapter: torch.nn.Module, seed: int) -> None:
    """Stand in for training: every trainable tensor moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _context(task: str, *neighbours: Neighbour) -> StageContext:
    return StageContext(0, task, neighbours, (task,), (len(CLASSES),))


def _own(*tasks: str) -> list[Function]:
    """Functions of tasks whose stages left weights of their own."""
    return [Function(task, task) for task in tasks]


# -- the contract, whatever is registered --------------------------------------------------------


def test_a_method_is_one_file_here_and_one_in_conf() -> None:
    assert set(EVERY) == set(handbook.options("method"))
    for name, method in methods.known().items():
        given = yaml.safe_load((handbook.CONF / "method" / f"{name}.yaml").read_text())
        assert given["name"] == name == method.name
        options = method_options(MethodSettings(name=name, options=given.get("options", {})))
        assert set(given.get("options", {})) <= set(type(options).model_fields)
        hidden = set(method.Options.model_fields) - set(given.get("options", {}))
        assert hidden <= {"learning_rate"}, f"{name}.yaml does not show {hidden}"
    with pytest.raises(UserError, match=r"method\.name=trg: unknown; .*; did you mean trge\?"):
        method_class("trg")


@pytest.mark.parametrize("name", EVERY)
def test_an_option_that_a_method_does_not_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError) as caught:
        _method(None, name, method={"name": name, "options": {"kapa": 1}})
    known = ", ".join(method_class(name).Options.model_fields)
    assert str(caught.value) == f"method.options.kapa: unknown option of {name}; it has {known}"
    with pytest.raises(UserError, match=r"^method\.options\.learning_rate=-1: .*greater than 0"):
        _method(None, name, method={"name": name, "options": {"learning_rate": -1}})


@pytest.mark.parametrize("name", EVERY)
def test_the_half_with_numbers_needs_no_backbone(name: str) -> None:
    method = _method(None, name)
    assert method.records == {} and method.policy in ("given", "one", "hard", "posterior")
    assert method.identifies() == (method.policy in ("hard", "posterior"))
    assert not method.fuses or method.identifies(), "fusing needs to know who is likeliest"
    with pytest.raises(RuntimeError, match=f"method {name} was built without a backbone"):
        _ = method.backbone


@pytest.mark.parametrize("name", EVERY)
def test_who_answers(name: str) -> None:
    """Nobody before anything was learned; functions with weights name the stage that left them."""
    method, known = _method(None, name), ["a", "b"]
    for task in ("a", "z", None):
        assert method.function(task, []) is None
    own, strange = method.function("a", known), method.function("z", known)
    if not method.learns:
        assert own is strange is None
    elif method.policy == "one":
        assert own == strange == method.function(None, known)
        assert own in (Function("b", "b"), Function("b", None))
    else:
        assert strange is method.function(None, known) is None
        assert own is not None and own.task == "a" and own.weights in (None, *known)


@pytest.mark.parametrize("name", EVERY)
def test_weights_that_do_not_fit_are_refused(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    with pytest.raises(ValueError, match=r"'z'|do not fit"):
        method.install("z", {"odd": torch.ones(1), "neighbours": torch.zeros(2, dtype=torch.uint8)})
    if method.trains:
        assert list(method.adapter(_context("a")).parameters())
    else:
        method.install("a", {})
        with pytest.raises(NotImplementedError, match=f"{name} trains nothing"):
            method.adapter(_context("a"))


# -- methods that train --------------------------------------------------------------------------

TRAINED = [name for name in EVERY if _method(None, name).trains]


def _reads_captions(method: Method) -> bool:
    """Whether class names go through the text encoder when the method answers."""
    return type(method).scores is Method.scores


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_an_installed_stage_answers_as_it_was_trained(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    pixels = backbone.normalise(images(4))
    x = method.trunk(pixels)
    first = method.first_blocks[1]
    text = Prompts(backbone, first, CLASSES, TEMPLATES)
    for seed, task in enumerate(("a", "b")):
        adapter = method.adapter(_context(task))
        _change(adapter, seed)
        v, u = adapter.image(x), torch.stack([adapter.text(*pair) for pair in text]).mean(dim=0)
        method.install(task, load(dump(adapter.export())))
        found = method.image_features(x, _own(task) * 4)
        if method.mixes and task == "b":  # adapters trained alone answer together
            assert not torch.allclose(found, v, atol=1e-6)
            continue
        assert torch.allclose(found, v, atol=1e-6)
        if _reads_captions(method):
            u = torch.nn.functional.normalize(u, dim=-1)
            (function,) = _own(task)
            got = method.class_features(CLASSES, TEMPLATES, function)
            assert torch.allclose(got, u, atol=1e-6)
        assert (found - method.frozen_features(x)).abs().max() > 1e-3
    assert torch.allclose(method.frozen_features(x), backbone.encode_image(pixels), atol=1e-6)
    plain = backbone.encode_classes(CLASSES, TEMPLATES)
    assert torch.equal(method.class_features(CLASSES, TEMPLATES, None), plain)


@pytest.mark.parametrize("name", TRAINED)
def test_a_fresh_adapter_starts_at_frozen_clip(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    x = method.trunk(backbone.normalise(images(3)))
    adapter = method.adapter(_context("a"))
    with torch.no_grad():
        assert torch.equal(adapter.image(x), method.frozen_features(x))
    trainable = {n for n, p in adapter.named_parameters() if p.requires_grad}
    assert trainable and trainable == {n for n, _ in adapter.named_parameters()}
    _change(adapter, 0)
    prompts = Prompts(backbone, method.first_blocks[1], CLASSES, TEMPLATES)[0]
    loss = adapter(lambda a: a.image(x) @ a.text(*prompts).T)
    loss.pow(2).sum().backward()
    assert all(p.grad is None for p in backbone.parameters()), "the backbone never trains"
    idle = {n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().max()}
    assert not idle, "everything that trains is used"


@pytest.mark.parametrize("name", TRAINED)
def test_initial_weights_follow_seed_and_task(backbone: Backbone, name: str) -> None:
    def weights(seed: int, task: str) -> bytes:
        chosen = settings(method={"name": name}).model_copy(update={"seed": seed})
        torch.manual_seed(seed + 1)  # the global state does not matter
        return dump(build_method(chosen, None, backbone).adapter(_context(task)).export())

    assert weights(0, "a") == weights(0, "a")
    drawn = build_method(settings(method={"name": name}), None, backbone).adapter(_context("a"))
    if not isinstance(drawn, TunedTowers):  # these start at frozen CLIP's weights
        assert weights(0, "a") != weights(1, "a") and weights(0, "a") != weights(0, "b")


# -- single methods ------------------------------------------------------------------------------


def test_finetuning_continues_from_the_last_stage(backbone: Backbone) -> None:
    method = _method(backbone, "finetune")
    first = method.adapter(_context("a"))
    _change(first, 0)
    method.install("a", first.export())
    second = method.adapter(_context("b"))
    assert dump(second.export()) == dump(first.export())
    _change(second, 1)
    assert dump(second.export()) != dump(method.adapter(_context("c")).export()), "own copies"
    names = set(first.export())
    assert not any("conv1" in name or "blocks.1." in name for name in names), "the trunk is frozen"
    assert {"image.blocks.2.attn.in_proj_weight", "text.blocks.3.mlp.c_fc.weight"} <= names
    frozen = {p.data_ptr() for p in backbone.parameters()}
    for own, theirs in zip(second._towers, (backbone.image, backbone.text), strict=True):
        copied = [n for n, p in own.named_parameters() if p.data_ptr() not in frozen]
        assert sum(p.numel() for p in own.parameters()) == sum(
            p.numel() for p in theirs.parameters()
        )
        assert 0 < len(copied) < len(list(own.parameters())), "stages share the frozen trunk"
        assert not any("conv1" in n or ("visual" in n and "text" in n) for n in copied)


@torch.no_grad()
def test_one_pass_over_a_batch_of_many_tasks(backbone: Backbone) -> None:
    method = _method(backbone, "trge")
    for seed, task in enumerate("abc"):
        adapter = method.adapter(_context(task))
        _change(adapter, seed)
        method.install(task, adapter.export())
    x = method.trunk(backbone.normalise(images(6)))
    functions = _own("b", "c", "c", "a", "a", "b")
    mixed = method.image_features(x, functions)
    for row, function in enumerate(functions):
        alone = method.image_features(x, [function] * 6)[row]
        assert (mixed[row] - alone).abs().max() < 1e-5


def test_groups_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    method, other = _method(backbone, "trge"), _method(backbone, "trge", experts={"rank": 5})
    tensors = other.adapter(_context("a")).export()
    with pytest.raises(ValueError, match="group 'a' does not fit"):
        method.install("a", tensors)
    missing = {k: v for k, v in method.adapter(_context("a")).export().items() if k != "text.W"}
    with pytest.raises(ValueError, match="does not fit"):
        method.install("a", missing)


def _neighbourhood(backbone: Backbone, **rule: Any) -> tuple[Trge, GroupAdapter]:
    """Task c beside a and b, whose groups have weights as if trained."""
    options = {"name": "trge", "neighbours": {"temperature": 0.5} | rule}
    method = build_method(settings(method=options), None, backbone)
    assert isinstance(method, Trge)
    for seed, task in enumerate("ab"):
        adapter = method.adapter(_context(task))
        randomise(adapter.group, seed)
        method.install(task, adapter.export())
    adapter = method.adapter(_context("c", Neighbour(0.2, "a"), Neighbour(0.6, "b")))
    randomise(adapter.group, 9)
    return method, adapter


def _learn_influence(adapter: GroupAdapter) -> None:
    with torch.no_grad():
        for influence in adapter.influence.values():
            influence.copy_(torch.tensor([[0.5, -0.3], [0.2, 0.4]]))


@torch.no_grad()
def test_neighbours_start_silent_and_fade_with_distance(backbone: Backbone) -> None:
    method, adapter = _neighbourhood(backbone)
    x = method.trunk(backbone.normalise(images(3)))
    with adapter.without(["a", "b"]):
        alone = adapter.image(x)
    assert torch.equal(adapter.image(x), alone), "a = 0 at start"
    _learn_influence(adapter)
    assert not torch.equal(adapter.image(x), alone)
    decay = torch.exp(-torch.tensor([0.2, 0.6]) / 0.5)[:, None]
    expected = torch.cat([torch.ones(1, 2), torch.tensor([[0.5, -0.3], [0.2, 0.4]]) * decay])
    stored = adapter.export()
    assert torch.allclose(stored["image.mix"], expected)
    assert [n.task for n in read_neighbours(stored)] == ["a", "b"]
    method.install("c", stored)
    assert torch.allclose(method.image_features(x, _own("c") * 3), adapter.image(x), atol=1e-6)


def test_only_the_new_group_and_its_influence_are_trained(backbone: Backbone) -> None:
    method, adapter = _neighbourhood(backbone)
    before = {task: dump(group.state_dict()) for task, group in method.groups.items()}
    names = {name for name, _ in adapter.named_parameters()}
    assert {"influence.image", "influence.text"} < names
    assert all(name.startswith(("group.", "influence.")) for name in names)
    x = method.trunk(backbone.normalise(images(3)))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    prompts = Prompts(backbone, 2, CLASSES, TEMPLATES)[0]
    (adapter.image(x) @ adapter.text(*prompts).T).sum().backward()
    assert adapter.influence["image"].grad is not None
    assert (adapter.influence["image"].grad.abs() > 0).all(), "influence learns from 0"
    optimizer.step()
    assert {task: dump(group.state_dict()) for task, group in method.groups.items()} == before


@torch.no_grad()
def test_softmax_mix_is_by_distance_alone(backbone: Backbone) -> None:
    _, adapter = _neighbourhood(backbone, mix="softmax")
    weights = adapter.export()["image.mix"]
    expected = (-torch.tensor([0.0, 0.2, 0.6]) / 0.5).softmax(dim=0)
    assert torch.allclose(weights, expected[:, None].expand(3, 2)) and not adapter.influence


@torch.no_grad()
@pytest.mark.parametrize("mix", ["residual", "softmax"])
def test_a_dropped_neighbour_leaves_nothing(backbone: Backbone, mix: str) -> None:
    """What is judged while a neighbour is silent is what is kept once it is dropped."""
    method, adapter = _neighbourhood(backbone, mix=mix)
    _learn_influence(adapter)
    x = method.trunk(backbone.normalise(images(3)))
    with adapter.without(["a"]):
        expected = adapter.image(x)
        shares = adapter.export()["image.mix"]
    assert (adapter.image(x) - expected).abs().max() > 1e-3
    whole = adapter.export()
    adapter.keep_neighbours(["b"])
    assert torch.equal(adapter.image(x), expected)
    stored = adapter.export()
    assert torch.equal(stored["image.mix"], shares[[0, 2]])
    if mix == "softmax":
        assert torch.allclose(shares.sum(dim=0), torch.ones(2)) and not shares[1].any()
    forgotten = method.without(whole, "a")
    assert torch.allclose(forgotten["image.mix"], stored["image.mix"])
    assert read_neighbours(forgotten) == read_neighbours(stored)
    assert stored["image.mix"].shape == (2, 2) and adapter.borrowed() == [
        {"task": "b", "distance": 0.6}
    ]
    adapter.keep_neighbours([])
    assert adapter.export()["image.mix"].shape == (1, 2) and adapter.borrowed() == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("helping", "floor", "kept"),
    [
        ({"a"}, 0.0, ["a"]),
        (set(), 0.0, []),
        ({"b"}, 0.0, ["b"]),
        ({"a"}, 99.9, []),
        ({"a", "b"}, 0.0, ["a", "b"]),
        (set(), -200.0, ["a", "b"]),
    ],
)
def test_neighbours_that_do_not_help_are_dropped(
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    helping: set[str],
    floor: float,
    kept: list[str],
) -> None:
    """Ten points of held-out accuracy for each helper that is heard, the rest changes nothing."""
    method, adapter = _neighbourhood(backbone, min_gain=floor)

    def judge(*_: Any) -> Judgement:
        heard = {n.task for n in adapter.neighbours} - adapter._silent
        return Judgement(0.5 + 0.1 * len(heard & helping), 1.0)

    monkeypatch.setattr("archipelago.pipeline.training.stage.judge", judge)
    gains = prune(method, adapter, [], 0, 1)
    assert [n.task for n in adapter.neighbours] == kept
    assert set(gains) == {"a", "b"}
    for task, gain in gains.items():
        assert gain == pytest.approx(10.0 if task in helping else 0.0)
    assert not adapter._silent
