"""A whole run in this process: nothing learned ever changes, and zero-shot stays reachable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archipelago.pipeline.evaluation.protocol import SETTINGS
from archipelago.pipeline.evaluation.views import CachedFeatures, SplitView
from archipelago.pipeline.identifiers import Evidence
from archipelago.pipeline.learned.answering import blind
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.learned.state import LAMBDAS, build_state
from archipelago.pipeline.methods import Function, methods
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.records import GroupRecord, class_list
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.streams import ImageTable, stratified_fold
from tests.unit.tiny_run import (
    TASKS,
    Never,
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


def _correct(run: RunFolder, name: str | int) -> dict[str, np.ndarray]:
    stage = f"{name:03d}" if isinstance(name, int) else name
    tensors = load(run.folder.read(f"evaluation/{stage}.safetensors"))
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _engine(run: RunFolder, settings: Settings) -> Engine:
    engine = Engine(EngineSpec(settings, run.uri, Kernels()))
    engine.install(run.groups.list())
    return engine


def test_with_given_ids_a_learned_task_keeps_its_accuracy(run: RunFolder) -> None:
    for j, task in enumerate(TASKS):
        right = [_correct(run, stage)[f"mtil_given/{task}"] for stage in range(j, len(TASKS))]
        for later in right[1:]:
            assert np.array_equal(later, right[0]), "image by image"
    matrix = np.array([r["accuracy"]["mtil_given"] for r in _records(run)])
    assert np.mean(np.diag(matrix)) > np.mean(matrix[0, 1:]) + 20, "something was learned"


def test_the_constancy_is_of_the_functions_not_of_stored_features(
    run: RunFolder, world: World
) -> None:
    """Every stored feature, computed again by an engine that knows all groups: equal to the bit."""
    engine = _engine(run, _settings(world))
    for domain in world.domains:
        rows = np.arange(len(ImageTable.open(domain.tables["test"])))
        learned = engine.features(domain.tables["test"], rows, Function(domain.name, domain.name))
        (stored,) = [
            load(run.folder.read(f"evaluation/functions/{name}"))
            for name in _feature_files(run)
            if name.startswith(f"{domain.name}-") and f"/{domain.name}-" in name
        ]
        assert np.array_equal(stored["rows"].numpy(), rows)
        assert np.array_equal(stored["features"].numpy(), learned)
        frozen = engine.look(domain.tables["test"], rows)[1]
        assert np.abs(frozen - learned).max() > 1e-3, "the function is another one"


def _feature_files(run: RunFolder) -> list[str]:
    assert run.folder.local is not None
    root = run.folder.local / "evaluation/functions"
    return [str(path.relative_to(root)) for path in root.rglob("*.safetensors")]


def test_groups_that_borrow_from_borrowers_are_learned(run: RunFolder) -> None:
    """A neighbour may itself have neighbours that the new task does not want."""
    groups = [GroupRecord.read(run, ref) for ref in run.groups.list()]
    borrowed = {group.name: [n["task"] for n in group.neighbours] for group in groups}
    assert borrowed[TASKS[0]] == [] and all(len(borrowed[t]) == 1 for t in TASKS[1:])
    assert any(borrowed[n] for names in borrowed.values() for n in names)
    hashes = group_hashes(run)
    for group in groups:
        mix = group.tensors["image.mix"]
        assert mix.shape == (1 + len(borrowed[group.name]), 2) and (mix[0] == 1).all()
        assert all(n["sha256"] == hashes[n["task"]] for n in group.neighbours)
        if borrowed[group.name]:
            assert (mix[1] != 0).any(), "the influence is learned"


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


def test_a_restored_learner_measures_the_same(run: RunFolder, world: World) -> None:
    learner = make_learner(world, run, _settings(world))
    assert learner.restore() == [] and learner.state.learned == list(TASKS)
    before = _records(run)[LAST]
    again = learner.evaluator.stage(LAST, learner.state)
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }


@pytest.mark.parametrize("lambda_max", [0.0, 0.7])
def test_lambda_zero_is_exactly_zero_shot_where_an_image_is_taken_for_unseen(
    run: RunFolder, world: World, lambda_max: float
) -> None:
    """Only the fusion's weight differs; both answer from the same groups."""
    learner = make_learner(world, run, _settings(world, lambda_max))
    learner.restore()
    zero_shot, same = _correct(run, "zero-shot"), []
    for stage in range(LAST):
        groups = [learner.groups[at] for at in range(stage + 1)]
        state = build_state(groups, learner.settings, learner.basis, scale=learner.scale)
        for domain in world.domains[stage + 1 :]:
            evidence, count = learner.evaluator.evidence(domain.name), 24
            assert state.identifier is not None
            found = state.identifier.identify(evidence)
            listed = class_list(domain.classes, domain.templates)
            view = learner.evaluator.view(domain.name)
            said = blind(state, view, found, listed, np.ones(count))
            right = said.argmax(axis=1) == learner.evaluator.labels(domain.name)
            same.append(np.array_equal(right, zero_shot[f"mtil_identified/{domain.name}"]))
    assert all(same) == (lambda_max == 0.0)


def test_lambda_auto_was_measured_with_what_it_is_applied_to(world: World, tmp_path: Path) -> None:
    """Before a domain is learned its fold is answered as an unseen image is, for every lambda; the
    best on average is applied as it is, without a ramp."""
    run = RunFolder(tmp_path / "run")
    learner = make_learner(world, run, _settings(world, "auto", training={"learning_rate": 0.05}))
    records, curves = learn_stream(learner), []
    for stage, domain in enumerate(world.domains):
        curve = learner.groups[stage].tasks[0].lambda_accuracy
        assert (curve is None) == (stage == 0)
        if curve is not None:
            curves.append(np.array(curve) - curve[0])
            state = build_state(
                [learner.groups[at] for at in range(stage)],
                learner.settings,
                learner.basis,
                scale=learner.scale,
            )
            table, listed = domain.tables["train"], class_list(domain.classes, domain.templates)
            labels = ImageTable.open(table).labels
            _, held = stratified_fold(labels, 0.1, learner.settings.seed, domain.name)
            compact, frozen = learner.encoder.look(table, held)
            view = SplitView(
                compact,
                frozen,
                CachedFeatures(learner.encoder, table, held),
                learner.evaluator.texts,
                learner.evaluator.store.versions,
            )
            assert state.identifier is not None
            found = state.identifier.identify(Evidence(compact))
            for at in (0, 3, 10, 20):
                weighed = replace(state, weight=float(LAMBDAS[at]))
                said = blind(weighed, view, found, listed, np.ones(len(held)))
                assert 100.0 * (said.argmax(axis=1) == labels[held]).mean() == curve[at]
        expected = LAMBDAS[int(np.mean(curves, axis=0).argmax())] if curves else 0.0
        assert records[stage]["lambda"] == expected
    assert any(np.ptp(curve) > 0 for curve in curves), "lambda matters here"


@pytest.mark.parametrize("method", ["trge", "gda_per_task"])
def test_the_oracle_transfers_zero_shot_whatever_lambda_is(
    world: World, tmp_path: Path, method: str
) -> None:
    """Invariant 4: who knows that an image is of no learned domain lets no group speak."""
    run = RunFolder(tmp_path / "run")
    parts = {"name": method, "unseen": {"lambda_max": 1.0, "lambda_steps": 0.0}}
    chosen = run_settings(world, method=parts, identifier={"name": "oracle"})
    records = learn_stream(make_learner(world, run, chosen), stages=3)
    frozen = _correct(run, "zero-shot")
    for stage, record in enumerate(records):
        right = _correct(run, stage)
        for task in TASKS[stage + 1 :]:
            for setting in ("mtil_given", "mtil_identified"):
                key = f"{setting}/{task}"
                assert np.array_equal(right[key], frozen[key]), "image by image"
        for setting in ("mtil_identified", "xtail"):
            learned = record["accuracy"][setting][: stage + 1]
            assert learned == record["accuracy"]["mtil_given"][: stage + 1], "never mistaken"
        assert record["identifier"]["seen_acceptance"] == record["identifier"]["accuracy"] == 100.0
        assert record["identifier"]["unseen_auroc"] == 100.0
        assert record["lambda"] == (1.0 if method == "trge" else 0.0)


@pytest.mark.parametrize("name", ["given", "identified"])
def test_decisions_do_not_depend_on_the_batch(run: RunFolder, world: World, name: str) -> None:
    """Batches of 8 while learning, of 1 here; features are computed afresh."""
    engine = _engine(run, _settings(world, evaluation={"batch_size": 1}))
    domain = world.domains[1]
    table, rows = domain.tables["test"], np.arange(12)[::-1].copy()
    learner = make_learner(world, run, _settings(world))
    learner.restore()
    compact, frozen = engine.look(table, rows)
    view, known = learner.evaluator.view(domain.name), learner.state.identifier
    np.testing.assert_allclose(compact, view.compact[rows], atol=1e-3)
    np.testing.assert_allclose(frozen, view.frozen[rows], atol=1e-5)
    assert known is not None
    alone, whole = known.identify(Evidence(compact)), known.identify(Evidence(view.compact))
    assert np.array_equal(alone.closed, whole.closed[rows])
    np.testing.assert_allclose(alone.log_odds, whole.log_odds[rows], atol=1e-3)
    task = domain.name if name == "given" else alone.options[alone.closed[0]]
    function = Function(task, task)
    got = engine.features(table, rows, function)
    assert np.abs(got - view.features(function)[rows]).max() < 1e-4
    scores = learner.method.scores(view, function, class_list(domain.classes, domain.templates))
    assert scores is not None
    u_CF = engine.texts(class_list(domain.classes, domain.templates), function)
    assert np.array_equal((got @ u_CF.T).argmax(axis=1), scores[rows].argmax(axis=1))


def test_the_probe_of_a_group_is_its_own_answer(run: RunFolder, world: World) -> None:
    engine = _engine(run, _settings(world))
    for ref, domain in zip(run.groups.list(), world.domains, strict=True):
        (task,) = GroupRecord.read(run, ref).tasks
        table = ImageTable.open(domain.tables["train"])
        assert task.probe is not None and task.probe.labels.max() < len(domain.classes)
        function, listed = Function(task.name, task.name), task.listed
        assert np.allclose(engine.texts(listed, function), task.own_CF, atol=1e-6)
        assert np.allclose(engine.texts(listed, None), task.text_CF, atol=1e-6)
        every = table.images(np.arange(len(table)))
        rows = [int((every == image).all(axis=(1, 2, 3)).argmax()) for image in task.probe.images]
        v_BF = engine.features(domain.tables["train"], np.array(rows), function)
        logits = engine.backbone.logit_scale * v_BF @ task.own_CF.T / task.temperature
        expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        assert np.allclose(expected, task.probe.scores, atol=1e-3)
        assert np.array_equal(table.labels[rows], task.probe.labels)


def test_a_stage_that_was_learned_but_not_measured_is_only_measured(
    run: RunFolder, world: World
) -> None:
    before = _records(run)
    run.folder.delete("evaluation/003.json")
    records = learn_stream(make_learner(world, run, _settings(world), trainer=Never()))
    assert [r["stage"] for r in records] == [3]
    assert records[0]["accuracy"] == before[3]["accuracy"]


def test_a_stage_that_answers_but_is_not_refined_is_refined(world: World, tmp_path: Path) -> None:
    """Killed after the closed form stood, and again while the group was trained."""
    method = {"name": "archipelago", "options": {"group": "on"}}
    settings = run_settings(world, method=method)
    whole, other = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "other")
    learn_stream(make_learner(world, whole, settings), stages=2)
    with other.lock():
        learner = make_learner(world, other, settings)
        learner.restore()
        learner.learn(0)
    closed = other.current_groups()
    with other.lock(), pytest.raises(AssertionError, match="trained again"):
        learner = make_learner(world, other, settings, trainer=Never())
        assert learner.restore()[0] == 0
        learner.learn(0)
        learner.refine(0)
    assert other.current_groups() == closed, "what stood before still answers"
    learn_stream(make_learner(world, other, settings), stages=2)
    hashes = [{ref.name: ref.sha256 for ref in run.current_groups()} for run in (whole, other)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 2
    assert other.current_groups()[0] != closed[0]
    learner = make_learner(world, other, settings, trainer=Never())
    assert learner.restore() == [2, 3] and not learner.refine(0)


def test_depths_are_parts_of_one_signature(run: RunFolder, world: World) -> None:
    rows, table = np.arange(5), world.domains[0].tables["test"]

    def features(depths: str) -> np.ndarray:
        settings = _settings(world, identifier={"name": "prototype", "depths": depths})
        return Engine(EngineSpec(settings, run.uri, Kernels())).raw_rows(table, rows)[0]

    everything = features("all")  # CLS and mean token after blocks 1, 2, 3; then CLIP's features
    assert everything.shape == (5, 3 * 2 * 48 + 32)
    np.testing.assert_allclose(features("trunk"), everything[:, : 2 * 2 * 48], atol=1e-5)
    np.testing.assert_allclose(features("final"), everything[:, 3 * 2 * 48 :], atol=1e-5)


@pytest.mark.parametrize("name", methods.known())
def test_every_method_learns_the_same_stream(world: World, tmp_path: Path, name: str) -> None:
    """Two tasks, whatever is registered: the settings that it has answers in, and a resume."""
    method, run = methods.get(name), RunFolder(tmp_path / "run")
    stages = 2 if not method.joint else 1
    settings = _settings(world, method={"name": name})
    records = learn_stream(make_learner(world, run, settings), stages)
    frozen = run.folder.read_json("evaluation/zero-shot.json")
    given = [np.array(record["accuracy"]["mtil_given"]) for record in records]
    assert set(records[0]["accuracy"]) == set(SETTINGS)
    for record in records:
        assert (record["identifier"] is None) != method.identifies()
        for setting, row in record["accuracy"].items():
            known = setting == "mtil_given" or method.policy != "given"
            assert all((value is not None) == known for value in row)
        if not method.identifies() and method.policy != "given":
            assert record["accuracy"]["mtil_identified"] == record["accuracy"]["mtil_given"]
    if not method.learns:
        assert not group_hashes(run)
        assert [row.tolist() for row in given] == [frozen["settings"]["mtil_given"]] * 2
    elif method.continues and not method.joint:
        right = [_correct(run, stage) for stage in range(2)]
        keys = [f"mtil_given/{task}" for task in TASKS]
        assert any(not np.array_equal(right[1][k], right[0][k]) for k in keys), "it forgets"
    elif not method.joint:
        assert given[1][0] == given[0][0], "what is learned stays"
    manifest = run.models.latest()
    assert (manifest is None) == (not method.learns)
    again = make_learner(world, run, settings, trainer=Never())
    again.restore()
    if manifest is not None:
        assert {group.ref for group in again.groups.values()} >= set(manifest.groups[:stages])
