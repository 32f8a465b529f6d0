"""Expert groups and their routers: gates, kinds, levels, parameters, and the two-GEMM form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.model.experts import (
    ExpertGroup,
    Experts,
    ExpertShape,
    expert_shapes,
    trunk_blocks,
)
from archipelago.pipeline.model.router import Gating
from archipelago.pipeline.model.watch import Watch
from archipelago.pipeline.settings import ExpertSettings
from tests.unit.tiny_clip import images, tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def _logits(experts: int, seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(64, experts, generator=torch.Generator().manual_seed(seed))


def _experts(seed: int = 0, **options: Any) -> Experts:
    fields = {"first": 1, "blocks": 2, "width": 16, "count": 4, "rank": 3, "scale": 0.5}
    fields |= {"kind": "lora", "level": "sample", "gating": Gating()} | options
    experts = Experts(ExpertShape(**fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return experts


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("active", [0, 1, 2, 5])
def test_active_gates_sum_to_one_and_shared_ones_are_always_active(
    shared: int, active: int
) -> None:
    gates = Gating(active, shared, "adaptive" if shared else "none")(_logits(6 + shared))
    assert torch.allclose(gates.sum(dim=1), torch.ones(64), atol=1e-6)
    assert (gates >= 0).all()
    assert ((gates > 0).sum(dim=1) == (active or 6) + shared).all()
    assert (gates[:, 6:] > 0).all()


def test_the_adaptive_gate_is_the_papers_formula() -> None:
    z, s, k = _logits(5, 1), _logits(2, 2), 2
    gates = Gating(k, 2, "adaptive")(torch.cat([z, s], dim=1))
    for row in range(len(z)):
        top = z[row].topk(k).indices
        denominator = z[row, top].exp().sum() + s[row].exp().sum()
        expected = torch.zeros(5)
        expected[top] = z[row, top].exp() / denominator
        assert torch.allclose(gates[row, :5], expected, atol=1e-6)
        assert torch.allclose(gates[row, 5:], s[row].exp() / denominator, atol=1e-6)


def test_naive_shared_experts_have_gate_one() -> None:
    gates = Gating(2, 2, "naive")(_logits(6))
    assert (gates[:, 4:] == 1).all()
    assert torch.allclose(gates[:, :4].sum(dim=1), torch.ones(64), atol=1e-6)


def test_the_plain_baseline_is_not_renormalised() -> None:
    logits = _logits(6)
    gates = Gating(2, 0, "none", "pre")(logits)
    top = logits.topk(2, dim=1).indices
    expected = torch.zeros_like(logits).scatter(1, top, logits.softmax(1).gather(1, top))
    assert torch.allclose(gates, expected) and (gates.sum(dim=1) < 1).all()


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("active", [0, 2])
def test_two_products_equal_the_sum_over_experts(level: str, kind: str, active: int) -> None:
    experts = _experts(kind=kind, level=level, gating=Gating(active))
    h, q = torch.randn(5, 7, 16), torch.randn(5, 16)
    for i, block in enumerate((1, 2)):
        expected = torch.zeros_like(h)
        gates = experts.gates(block, h, q)
        assert gates.shape == (5, 7 if level == "token" else 1, 4)
        assert torch.allclose(gates.sum(dim=-1), torch.ones(gates.shape[:2]), atol=1e-6)
        for e in range(4):
            rows = slice(3 * e, 3 * e + 3)
            z = h @ experts.A[i, rows].T
            z = F.relu(z) if kind == "bottleneck" else z
            expected += 0.5 * gates[..., e : e + 1] * (z @ experts.B[i, :, rows].T)
        got = experts(block, h, q)
        assert got is not None and torch.allclose(got, expected, atol=1e-4)
    assert experts(0, h, q) is None, "below the first adapted block nothing is added"


def test_sample_routing_reads_only_the_query_and_token_routing_only_the_token() -> None:
    h, q, other = torch.randn(2, 4, 16), torch.randn(2, 16), torch.randn(2, 16)
    sample, token = _experts(level="sample"), _experts(level="token")
    assert torch.equal(sample.gates(1, h, q), sample.gates(1, 2 * h, q))
    assert not torch.equal(sample.gates(1, h, q), sample.gates(1, h, other))
    assert torch.equal(token.gates(1, h, q), token.gates(1, h, other))
    changed = h.clone()
    changed[:, 2] = 1.0
    same = (token.gates(1, h, q) == token.gates(1, changed, q)).all(dim=-1)
    assert same.tolist() == [[True, True, False, True]] * 2


def test_router_starts_small_but_not_tied() -> None:
    shape = ExpertShape(0, 2, 64, 8, 2, 1.0, "lora", "sample", Gating(2))
    experts = Experts(shape, torch.Generator().manual_seed(0))
    assert (experts.B == 0).all() and (experts.A != 0).all()
    assert 0.015 < experts.W.std().item() < 0.025
    h, q = torch.randn(200, 2, 64), torch.randn(200, 64)
    used = (experts.gates(0, h, q) > 0).sum(dim=(0, 1))
    assert (used > 0).all(), "every expert is somebody's choice from the first step on"


def _group(backbone: Backbone, **options: Any) -> ExpertGroup:
    return ExpertGroup(expert_shapes(backbone, ExpertSettings(**options)), seed=0)


def _expert_parameters(group: ExpertGroup) -> int:
    return sum(e.A.numel() + e.B.numel() for _, e in group.encoders())


@pytest.mark.parametrize("shared", ["none", "naive", "adaptive"])
def test_finer_experts_have_equal_parameters(backbone: Backbone, shared: str) -> None:
    """(16/3/1/4), (32/6/2/2), (64/12/4/1): k + S active, S of them always; none: all chosen."""
    sizes = set()
    for preset, total, always in (("coarse", 4, 1), ("medium", 8, 2), ("fine", 16, 4)):
        group = _group(backbone, preset=preset, shared=shared)
        sizes.add(_expert_parameters(group))
        assert group.image is not None
        gates = group.image.gates(2, torch.randn(9, 3, 48), torch.randn(9, 48))
        assert ((gates > 0).sum(dim=-1) == total).all(), "equally many are active"
        if shared != "none":
            assert (gates[..., -always:] > 0).all()
            assert (gates[..., :-always].sum(dim=-1) < 1 + 1e-5).all()
        expected = 1 + always if shared == "naive" else 1
        assert torch.allclose(gates.sum(dim=-1), torch.tensor(float(expected)), atol=1e-5)
    assert sizes == {2 * 2 * 64 * (48 + 32)}


def test_presets_and_contradictions() -> None:
    settings = ExpertSettings(preset="fine", shared="adaptive")
    shape = (settings.count, settings.active, settings.shared_count, settings.rank)
    assert shape == (64, 12, 4, 1)
    assert ExpertSettings.model_validate(settings.model_dump()) == settings
    with pytest.raises(ValueError, match="rank=3 contradicts preset=fine"):
        ExpertSettings(preset="fine", rank=3)
    with pytest.raises(ValueError, match="shared=naive needs a preset or shared_count"):
        ExpertSettings(shared="naive")
    with pytest.raises(ValueError, match="image and text are both off"):
        ExpertSettings(image="off", text="off")


def _reference(z: Tensor, s: Tensor, k: int, rule: str, normalise: str) -> Tensor:
    """Gates of one token by the equations of the paper, expert by expert, in double precision."""
    z, s = z.double(), s.double()
    order = sorted(range(len(z)), key=lambda e: -float(z[e]))
    chosen = set(order[:k])
    over = range(len(z)) if normalise == "pre" else chosen
    total = sum(z[e].exp() for e in over)
    if rule == "adaptive":
        total = total + s.exp().sum()
    routed = [z[e].exp() / total if e in chosen else torch.zeros(()) for e in range(len(z))]
    shared = [torch.ones(()) if rule == "naive" else x.exp() / total for x in s]
    return torch.stack([*routed, *shared]).double()


@pytest.mark.parametrize("normalise", ["pre", "post"])
@pytest.mark.parametrize(("rule", "shared"), [("none", 0), ("naive", 2), ("adaptive", 2)])
@pytest.mark.parametrize("level", ["sample", "token"])
def test_a_block_is_the_papers_sum_over_experts(
    rule: str, shared: int, normalise: str, level: str
) -> None:
    """`y = sum_T g_i B_i A_i h + sum_S g^s_i B^s_i A^s_i h`, written out beside two products."""
    k, gating = 3, Gating(3, shared, rule, normalise)
    experts = _experts(count=7 + shared, level=level, gating=gating)
    h, q = torch.randn(3, 5, 16), torch.randn(3, 16)
    got = experts(1, h, q)
    assert got is not None
    for b in range(3):
        for t in range(5):
            logits = experts.W[0] @ (h[b, t] if level == "token" else q[b])
            g = _reference(logits[:7], logits[7:], k, rule, normalise)
            y = torch.zeros(16, dtype=torch.float64)
            for e in range(7 + shared):
                rows = slice(3 * e, 3 * e + 3)
                inner = experts.A[0, rows].double() @ h[b, t].double()
                y += 0.5 * g[e] * (experts.B[0, :, rows].double() @ inner)
            assert torch.allclose(got[b, t].double(), y, atol=1e-4)
            if normalise == "post" or rule == "adaptive":
                assert g.sum() <= 1 + (shared if rule == "naive" else 0) + 1e-9


def test_noise_moves_choices_in_training_only() -> None:
    experts = _experts(count=8, gating=Gating(2, 1, "adaptive"))
    h, q = torch.randn(32, 1, 16), 0.1 * torch.randn(32, 16)
    quiet = experts(1, h, q)
    assert quiet is not None

    def noisy(seed: int) -> Tensor:
        watch = Watch(std=2.0, generator=torch.Generator().manual_seed(seed))
        got = experts(1, h, q, watch=watch)
        assert got is not None
        return got

    assert torch.equal(noisy(1), noisy(1)), "a step can be repeated"
    assert not torch.equal(noisy(1), noisy(2))
    silent = experts(1, h, q, watch=Watch())
    assert silent is not None and torch.equal(silent, quiet)
    still = experts(1, h, q)
    assert still is not None and torch.equal(still, quiet), "no noise without a training pass"


def test_stored_parameters_are_experts_and_routers(backbone: Backbone) -> None:
    group = _group(backbone, count=4, rank=2)
    assert group.parameter_count() == _expert_parameters(group) + 2 * 4 * (48 + 32)
    assert set(group.state_dict()) == {f"{e}.{k}" for e in ("image", "text") for k in "ABW"}


@pytest.mark.parametrize(
    ("options", "trunk", "encoders"),
    [
        ({}, (2, 2), {"image", "text"}),
        ({"first_block": 0}, (0, 0), {"image", "text"}),
        ({"first_block": 3}, (3, 3), {"image", "text"}),
        ({"text": "off"}, (2, 3), {"image"}),
    ],
)
def test_where_experts_sit(
    backbone: Backbone, options: dict[str, Any], trunk: tuple[int, int], encoders: set[str]
) -> None:
    assert trunk_blocks(backbone, ExpertSettings(**options)) == trunk
    group = _group(backbone, **options)
    assert {name for name, _ in group.encoders()} == encoders
    assert len(group.image.A) == 4 - trunk[0]


@torch.no_grad()
def test_captions_are_routed_by_their_end_and_images_by_cls(backbone: Backbone) -> None:
    """Token 0 of a caption is a constant under a causal mask: routing by it would be blind."""
    seen: list[tuple[Tensor, Tensor]] = []

    def delta(block: int, h: Tensor, q: Tensor) -> None:
        seen.append((h, q))

    backbone.encode_text(backbone.tokenize(["a cat", "a large dog"]), delta)
    assert len(seen) == 4
    for h, q in seen[:3]:
        assert torch.equal(q[0], h[0, 3]) and torch.equal(q[1], h[1, 4])
        assert torch.equal(h[0, 0], h[1, 0])
    seen.clear()
    backbone.encode_image(backbone.normalise(images(2)), delta)
    assert len(seen) == 4 and all(torch.equal(q, h[:, 0]) for h, q in seen)
