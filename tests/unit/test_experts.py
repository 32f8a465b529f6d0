"""Expert groups and their routers: gates, kinds, levels, parameters, and the two-GEMM form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.backbone import Backbone
from pipeline.model.experts import ExpertGroup, Experts, ExpertShape, expert_shapes, trunk_blocks
from pipeline.model.router import Gating
from pipeline.settings import ExpertSettings
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


def test_finer_experts_have_equal_parameters(backbone: Backbone) -> None:
    sizes = set()
    for count, active, shared, rank in [(16, 3, 1, 4), (32, 6, 2, 2), (64, 12, 4, 1)]:
        group = _group(
            backbone, count=count, active=active - shared, shared_count=shared, rank=rank,
            shared="adaptive",
        )  # fmt: skip
        sizes.add(_expert_parameters(group))
        gates = group.image.gates(2, torch.randn(9, 3, 48), torch.randn(9, 48))
        assert ((gates > 0).sum(dim=-1) == active).all(), "k_tot experts are active"
        assert (gates[..., -shared:] > 0).all()
    assert sizes == {2 * 2 * 64 * (48 + 32)}


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
