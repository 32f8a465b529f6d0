"""What a run on a GPU needs, without one: the `meta` device refuses to mix with the CPU as CUDA
does, and computes nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import ray
import torch

from archipelago.actors.preflight import check_resources
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import (
    Adapter,
    Function,
    Method,
    Neighbour,
    StageContext,
    build_method,
    method_class,
)
from archipelago.pipeline.methods.base import methods
from archipelago.pipeline.model.kernels import Kernels, choose
from archipelago.pipeline.settings import ClusterSettings, TrainWorkerSettings
from archipelago.pipeline.training.loop import StepLoss, moved
from tests.unit.tiny_clip import settings, tiny_backbone, words

TRAINED = [n for n in methods.known() if build_method(settings(method={"name": n})).trains]


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device; who asks it for numbers gets zeros, as the shapes alone are looked at."""
    cpu, item, boolean = torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.__bool__

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    for name, real, instead in (
        ("cpu", cpu, zeros),
        ("item", item, lambda tensor: 0),
        ("__float__", torch.Tensor.__float__, lambda tensor: 0.0),
        ("__int__", torch.Tensor.__int__, lambda tensor: 0),
        ("__bool__", boolean, lambda tensor: tensor.dtype == torch.bool),
    ):
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda tensor, *more, real=real, instead=instead: (
                instead(tensor) if tensor.is_meta else real(tensor, *more)
            ),
        )
    return "meta"


def built(name: str, device: str, **experts: Any) -> Method:
    backbone = tiny_backbone().to(device)
    return build_method(settings(method={"name": name}, experts=experts), None, backbone)


def context_of(task: str, neighbours: tuple[Neighbour, ...] = ()) -> StageContext:
    return StageContext(1, task, neighbours, (task,), (3,))


def everything(adapter: Adapter) -> list[torch.Tensor]:
    return [*adapter.parameters(), *adapter.buffers()]


@pytest.mark.filterwarnings("ignore:for .*meta parameter")
@pytest.mark.parametrize("name", TRAINED)
def test_all_that_trains_lies_on_the_device_and_meets_nothing_from_elsewhere(
    name: str, meta: str
) -> None:
    here = built(name, "cpu").adapter(context_of("apples"))
    method = built(name, meta)
    method.install("apples", here.export())
    neighbours = (Neighbour(0.1, "apples"),) if method.borrows else ()
    adapter = method.adapter(context_of("boats", neighbours))
    assert {tensor.device.type for tensor in everything(adapter)} == {"meta"}
    backbone = method.backbone
    _, first_text = method.first_blocks
    with torch.no_grad():
        x_BLD = method.trunk(torch.zeros(4, 3, 32, 32, device="meta"))
        tokens = words(["a cat", "a dog", "a bird"]).to("meta")
        x_CLD = backbone.text.trunk(tokens, first_text)
    step = StepLoss(method, adapter, 1, 0, 1)
    adapter.watch = step.watch(0, 0)
    v_BF = adapter.image(x_BLD)
    u_CF = adapter.text(x_CLD, torch.zeros(3, dtype=torch.long, device="meta"))
    assert v_BF.dtype == u_CF.dtype == torch.float32
    loss = (v_BF @ u_CF.T).square().sum()
    penalty = adapter.penalty([x_BLD], 0)
    (loss if penalty is None else loss + penalty).backward()
    trained = [p for p in adapter.parameters() if p.requires_grad]
    assert any(p.grad is not None for p in trained)
    assert all(p.grad.device.type == "meta" for p in trained if p.grad is not None)


@pytest.mark.parametrize("name", [n for n in TRAINED if method_class(n).policy != "one"])
def test_stored_functions_answer_on_the_device(name: str, meta: str) -> None:
    stored = built(name, "cpu").adapter(context_of("apples")).export()
    method = built(name, meta)
    method.install("apples", stored)
    with torch.no_grad():
        x_BLD = method.trunk(torch.zeros(4, 3, 32, 32, device="meta"))
        function = Function("apples", "apples")
        assert method.image_features(x_BLD, [function] * 4).device.type == "meta"


def test_a_run_goes_on_where_there_is_another_device() -> None:
    begun = Kernels("flash", "bf16", "cuda", "tf32")
    assert Kernels.stored(begun.asdict()) == begun
    assert Kernels.stored(begun.asdict(), "cpu") == Kernels("flash", "bf16", "cpu", "tf32")
    older = {"attention": "math", "precision": "bf16", "device": "cpu"}
    assert Kernels.stored(older) == Kernels("math", "bf16", "cpu", "fp32")
    for device, precision in (("cuda", "high"), ("cpu", "highest")):
        with Kernels.stored(begun.asdict(), device).exact():
            assert torch.get_float32_matmul_precision() == precision
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("inference", "least"), [("fp32", 1.0), ("tf32", 1.0), ("bf16", 0.999)])
def test_inference_may_be_coarser(inference: str, least: float) -> None:
    backbone, images = tiny_backbone(), torch.randn(6, 3, 32, 32)
    tokens = backbone.tokenize(["a cat", "a dog"])
    found = {}
    for chosen in ("fp32", inference):
        backbone.kernels = choose("math", "fp32", "cpu", chosen)
        with torch.no_grad(), backbone.kernels.exact():
            found[chosen] = backbone.encode_image(images), backbone.encode_text(tokens)
    for exact, coarse in zip(found["fp32"], found[inference], strict=True):
        assert coarse.dtype == torch.float32
        assert (exact * coarse).sum(dim=1).min() >= least - 1e-6
        assert (inference == "bf16") == bool((exact != coarse).any())


def test_activations_are_moved_as_they_are() -> None:
    x = torch.randn(2, 3).half()
    assert torch.equal(moved(x, torch.device("cpu")), x.float())
    assert moved(x, torch.device("meta")).dtype == torch.float32


def test_workers_that_would_share_a_card_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def cluster(workers: int, gpus: float) -> ClusterSettings:
        train = TrainWorkerSettings(num_workers=workers, num_gpus=gpus)
        return ClusterSettings(train=train)

    with pytest.raises(UserError, match=r"^cluster\.train\.num_gpus=0\.5: .*same card"):
        check_resources(cluster(2, 0.5))
    for workers, gpus in ((1, 0.5), (2, 1.0), (2, 0.0)):
        check_resources(cluster(workers, gpus))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_on_cuda_equals_one_on_the_cpu(name: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        method = built(name, device)
        adapter = method.adapter(context_of("apples"))
        torch.manual_seed(0)
        images = torch.randn(4, 3, 32, 32).to(device)
        with torch.no_grad():
            x_BLD = method.trunk(images)
        found[device] = adapter.image(x_BLD).detach().cpu()
    assert torch.allclose(found["cpu"], found["cuda"], atol=1e-4)
