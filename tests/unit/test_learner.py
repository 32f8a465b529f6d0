"""A whole run in this process: nothing learned ever changes, and zero-shot stays reachable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evaluation.engine import Engine, EngineSpec
from pipeline.identifiers import Evidence, Identification
from pipeline.model.kernels import Kernels
from pipeline.settings import Settings
from pipeline.store import RunFolder
from pipeline.store.tensors import load
from pipeline.streams import ImageTable
from pipeline.training.stage import GROUP
from tests.unit.tiny_run import (
    TASKS,
    World,
    group_hashes,
    learn_stream,
    make_learner,
    make_world,
    run_settings,
)

Record = dict[str, Any]
LAST = len(TASKS) - 1
# Far-off neighbours are welcome and need not help: groups that borrow are what is tested.
BORROWING = {"max_distance": 2.0, "min_gain": -100.0, "count": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def _settings(world: World, lambda_max: Any = 0.7, **parts: Any) -> Settings:
    method = {"name": "trge", "neighbours": BORROWING, "unseen": {"lambda_max": lambda_max}}
    return run_settings(world, **({"method": method} | parts))


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "trge")
    learn_stream(make_learner(world, folder, _settings(world)))
    return folder


def _records(run: RunFolder) -> list[Record]:
    return [run.folder.read_json(f"evaluation/{i:03d}.json") for i in range(len(TASKS))]


def _correct(run: RunFolder, stage: int) -> dict[str, np.ndarray]:
    tensors = load(run.folder.read(f"evaluation/{stage:03d}.safetensors"))
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_with_oracle_ids_a_learned_task_keeps_its_accuracy(run: RunFolder) -> None:
    for j, task in enumerate(TASKS):
        right = [_correct(run, stage)[f"oracle/{task}"] for stage in range(j, len(TASKS))]
        for later in right[1:]:
            assert np.array_equal(later, right[0]), "image by image"
    matrix = np.array([r["accuracy"]["oracle"] for r in _records(run)])
    assert np.mean(np.diag(matrix)) > np.mean(matrix[0, 1:]) + 20, "something was learned"


def test_the_constancy_is_of_the_functions_not_of_stored_logits(
    run: RunFolder, world: World
) -> None:
    """Every stored logit, computed again by an engine that knows all groups: equal to the bit."""
    settings = _settings(world)
    engine = Engine(EngineSpec(settings, run.uri, Kernels()))
    engine.install(run.groups.list())
    for domain in world.domains:
        rows = np.arange(len(ImageTable.open(domain.tables["test"])))
        learned = engine.logits(
            domain.tables["test"], rows, domain.name, domain.classes, domain.templates
        )
        (stored,) = [
            load(run.folder.read(f"evaluation/logits/{name}"))
            for name in _logit_files(run)
            if name.startswith(f"{domain.name}-") and f"/{domain.name}-" in name
        ]
        assert np.array_equal(stored["rows"].numpy(), rows)
        assert np.array_equal(stored["logits"].numpy(), learned)


def _logit_files(run: RunFolder) -> list[str]:
    assert run.folder.local is not None
    root = run.folder.local / "evaluation/logits"
    return [str(path.relative_to(root)) for path in root.rglob("*.safetensors")]


def test_groups_that_borrow_from_borrowers_are_learned(run: RunFolder) -> None:
    """A neighbour may itself have neighbours that the new task does not want."""
    cards = {r.name: json.loads(run.groups.read(r, "task.json")) for r in run.groups.list()}
    borrowed = {name: [n["task"] for n in card["neighbours"]] for name, card in cards.items()}
    assert borrowed[TASKS[0]] == [] and all(len(borrowed[t]) == 1 for t in TASKS[1:])
    assert any(borrowed[n] for names in borrowed.values() for n in names)
    for ref in run.groups.list():
        tensors = load(run.groups.read(ref, GROUP))
        assert tensors["image.mix"].shape == (1 + len(borrowed[ref.name]), 2)
        assert (tensors["image.mix"][0] == 1).all()
        if borrowed[ref.name]:
            assert (tensors["image.mix"][1] != 0).any(), "the influence is learned"


def test_later_stages_leave_earlier_groups_alone(
    run: RunFolder, world: World, tmp_path: Path
) -> None:
    other, settings = RunFolder(tmp_path / "run"), _settings(world)
    learn_stream(make_learner(world, other, settings), stages=2)
    early = group_hashes(other)
    assert list(early) == list(TASKS[:2])
    learn_stream(make_learner(world, other, settings))
    hashes = group_hashes(other)
    assert {task: hashes[task] for task in early} == early
    assert hashes == group_hashes(run), "and a run in two pieces equals one in one piece"
    for ref in other.groups.list():
        other.groups.verify(ref)
    files = [json.loads(other.groups.read(r, "task.json")) for r in other.groups.list()]
    assert [f["parent"] for f in files] == [None, *list(hashes.values())[:-1]]


def test_a_restored_learner_measures_the_same(run: RunFolder, world: World, tmp_path: Path) -> None:
    learner = make_learner(world, run, _settings(world))
    assert learner.restore() == [] and learner.identifier.tasks == TASKS
    before = _records(run)[LAST]
    again = learner.evaluator.stage(LAST)
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }


@pytest.mark.parametrize("lambda_max", [0.0, 0.7])
def test_lambda_zero_and_oracle_unseen_detection_are_exactly_zero_shot(
    run: RunFolder, world: World, lambda_max: float
) -> None:
    """Only the fusion's weight differs; both answer from the same groups."""
    learner = make_learner(world, run, _settings(world, lambda_max))
    learner.restore()
    evaluator, facts = learner.evaluator, list(learner.evaluator.facts.items())
    zero_shot = load(run.folder.read("evaluation/zero-shot.safetensors"))
    same = []
    for stage in range(LAST):
        evaluator.facts = dict(facts[: stage + 1])
        for task in TASKS[stage + 1 :]:
            count = len(zero_shot[task])
            shares = np.random.default_rng(stage).dirichlet(np.ones(stage + 1), count)
            unseen = Identification(
                TASKS[: stage + 1], np.zeros((count, stage + 2)), shares,
                np.full(count, -1), np.zeros(count),
            )  # fmt: skip
            right = evaluator.correct(task, unseen)
            same.append(np.array_equal(right, zero_shot[task].numpy().astype(bool)))
    assert all(same) == (lambda_max == 0.0)


def test_zero_lambda_run_transfers_zero_shot(world: World, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    records = learn_stream(make_learner(world, run, _settings(world, 0.0)), stages=2)
    zero_shot = run.folder.read_json("evaluation/zero-shot.json")["accuracy"]
    for stage, record in enumerate(records):
        assert record["accuracy"]["oracle"][stage + 1 :] == zero_shot[stage + 1 :]
        assert record["lambda"] == 0.0


@pytest.mark.parametrize("name", ["oracle", "prototype"])
def test_decisions_do_not_depend_on_the_batch(run: RunFolder, world: World, name: str) -> None:
    """Batches of 8 while learning, of 1 here; features and logits are computed afresh."""
    settings = _settings(world, evaluation={"batch_size": 1})
    engine = Engine(EngineSpec(settings, run.uri, Kernels()))
    engine.install(run.groups.list())
    domain = world.domains[1]
    table, rows = domain.tables["test"], np.arange(12)[::-1].copy()
    stored = make_learner(world, run, _settings(world))
    stored.restore()
    features = engine.features(table, rows)
    np.testing.assert_allclose(features, stored.evaluator.features(domain.name)[rows], atol=1e-4)
    alone = stored.identifier.identify(Evidence(features))
    whole = stored.identifier.identify(Evidence(stored.evaluator.features(domain.name)))
    assert np.array_equal(alone.chosen, whole.chosen[rows])
    function = domain.name if name == "oracle" else TASKS[alone.closed[0]]
    got = engine.logits(table, rows, function, domain.classes, domain.templates)
    expected = stored.evaluator._logits(domain.name, function, np.arange(24))[rows]
    assert np.abs(got - expected).max() < 1e-4
    assert np.array_equal(got.argmax(axis=1), expected.argmax(axis=1))


def test_the_probe_of_a_group_is_its_own_answer(run: RunFolder, world: World) -> None:
    engine = Engine(EngineSpec(_settings(world), run.uri, Kernels()))
    engine.install(run.groups.list())
    for ref, domain in zip(run.groups.list(), world.domains, strict=True):
        probe = load(run.groups.read(ref, "probe.safetensors"))
        classes = load(run.groups.read(ref, "identity.safetensors"))["classes"]
        backbone = engine.backbone
        with torch.no_grad():
            x = engine.method.trunk(backbone.normalise(probe["images"]))
            v = engine.method.image_features(x, [ref.name] * len(x))
            logits = backbone.logit_scale * v @ classes.T
        assert torch.allclose(logits, probe["logits"], atol=1e-4)
        assert probe["labels"].max() < len(domain.classes)


def test_a_stage_that_was_learned_but_not_measured_is_only_measured(
    run: RunFolder, world: World
) -> None:
    def never(spec: Any) -> Any:
        raise AssertionError("trained again")

    before = _records(run)
    run.folder.delete("evaluation/003.json")
    records = learn_stream(make_learner(world, run, _settings(world), train=never))
    assert [r["stage"] for r in records] == [3]
    assert records[0]["accuracy"] == before[3]["accuracy"]


def test_signature_columns_name_what_the_engine_computes(run: RunFolder, world: World) -> None:
    rows, table = np.arange(5), world.domains[0].tables["test"]

    def features(depths: str) -> tuple[np.ndarray, np.ndarray]:
        settings = _settings(world, identifier={"name": "prototype", "depths": depths})
        engine = Engine(EngineSpec(settings, run.uri, Kernels()))
        return engine.features(table, rows), np.asarray(engine.facts()["columns"])

    everything, columns = features("all")
    assert everything.shape == (5, 3 * 2 * 48 + 32) and columns.tolist() == list(range(320))
    for depths in ("trunk", "final"):
        some, columns = features(depths)
        np.testing.assert_allclose(some, everything[:, columns], atol=1e-5)


@pytest.mark.parametrize("name", ["zero_shot", "lora_per_task", "finetune"])
def test_references_learn_the_same_stream(world: World, tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path / "run")
    records = learn_stream(make_learner(world, run, _settings(world, method={"name": name})), 2)
    zero_shot = run.folder.read_json("evaluation/zero-shot.json")["accuracy"]
    first, second = (np.array(r["accuracy"]["identified"]) for r in records)
    for record in records:
        assert record["accuracy"]["identified"] == record["accuracy"]["oracle"]
        assert record["identifier"] is None and record["lambda"] == 0.0
    hashes = group_hashes(run)
    if name == "zero_shot":
        assert not hashes and first.tolist() == second.tolist() == zero_shot
    elif name == "lora_per_task":
        assert first[1:].tolist() == zero_shot[1:] and second[2:].tolist() == zero_shot[2:]
        assert second[0] == first[0] and len(hashes) == 2
    else:
        right = [_correct(run, stage) for stage in range(2)]
        changed = [
            not np.array_equal(right[1][f"oracle/{task}"], right[0][f"oracle/{task}"])
            for task in TASKS
        ]
        assert any(changed) and len(hashes) == 2, "the newest weights answer for every task"
