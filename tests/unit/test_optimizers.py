"""Muon and the average of weights: what they do, that they resume, and that off changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from archipelago.pipeline.store import sha256
from archipelago.pipeline.store.tensors import dump
from archipelago.pipeline.training import checkpoints, launch
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.optimizers import Average, Muon, orthogonalised
from archipelago.pipeline.training.stage import run_stage
from tests.unit.tiny_run import World, make_world, run_settings, stage_spec


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples",))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 2, 5, 8)])
def test_matrices_are_made_orthogonal(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalised(x)
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.6 and values.max() < 1.3 and s.max() > 2.0
    assert torch.linalg.vector_norm(y - u @ v) < 0.35 * torch.linalg.vector_norm(u @ v)
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


def test_what_is_no_matrix_is_stepped_by_adamw() -> None:
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((5,), (3, 1), (3, 4))]
    plain = [nn.Parameter(weight.detach().clone()) for weight in weights]
    ours, theirs = Muon(weights, lr=0.1), torch.optim.AdamW(plain, lr=0.1)
    for both in (weights, plain):
        for weight in both:
            weight.grad = torch.arange(1.0, 1.0 + weight.numel()).reshape(weight.shape)
    ours.step()
    theirs.step()
    assert torch.equal(weights[0], plain[0]) and torch.equal(weights[1], plain[1])
    assert not torch.equal(weights[2], plain[2])
    step = (plain[2] - 1.0 + 0.1 * 0.01).square().mean().sqrt()  # AdamW's, without its decay
    mine = (weights[2] - 1.0).square().mean().sqrt()
    assert mine < 2.0 * step and weights[2].grad is not None


def test_an_average_is_of_the_weights_so_far() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average, expected = Average(0.5, module, None), 0.0
    for step, value in enumerate((1.0, 2.0, 4.0), 1):
        module.weight.data.fill_(value)
        average.add(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.inside():
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 4.0
    assert not Average(0.0, module, None).values


@pytest.mark.parametrize("training", [{"optimizer": "muon"}, {"polyak": 0.9}])
def test_a_stage_resumes_to_the_bit(world: World, tmp_path: Path, training: dict) -> None:
    chosen = run_settings(world, method={"name": "trge"}, training=training)
    spec = stage_spec(world, tmp_path / "whole", chosen)
    whole = launch.train_stage(spec)
    states: list[TrainingState] = []

    def save(metrics: dict, state: TrainingState | None, outcome: object) -> None:
        if state is not None and outcome is None and not states:
            checkpoints.save(tmp_path, state)
            states.append(state)

    run_stage(spec, save=save)
    resume = checkpoints.restore(launch.Folder(tmp_path))
    assert resume.step == 3 and bool(resume.averaged) == ("polyak" in training)
    outcomes: list[object] = []
    run_stage(spec, resume=resume, save=lambda metrics, state, outcome: outcomes.append(outcome))
    found = outcomes[-1]
    assert found is not None and dump(found.group) == dump(whole.group)  # type: ignore[attr-defined]
    plain = run_settings(world, method={"name": "trge"})
    other = launch.train_stage(replace(spec, settings=plain, run=str(tmp_path / "plain")))
    assert sha256(dump(other.group)) != sha256(dump(whole.group))
