"""Switches of `archipelago` that are off: nothing changes where they are, invariants hold where
they are on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from archipelago.pipeline.closedform import unlearned
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.ablation import VARIANTS
from archipelago.pipeline.evaluation.protocol import stream_pairs
from archipelago.pipeline.identifiers import Evidence
from archipelago.pipeline.identifiers.oracle import certain
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.learned.answering import Question, blind
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.learned.candidates import Candidate, match
from archipelago.pipeline.learned.state import State, build_state
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.methods.archipelago import Archipelago, ArchipelagoOptions
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import class_list
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.resume import check_continues
from tests.unit.tiny_run import (
    TASKS,
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)
from tests.unit.tiny_serving import SERVING, point, test_images

ON = {"joint": 0.5, "predicted": 0.3, "cca": 0.3}
STRANGE = ["zebra", "yak", "red bus", "a grey wall"]
FAST = {"batch_size": 64}  # of evaluation: a domain's test images in one pass, as when asked here


@pytest.fixture(scope="module", autouse=True)
def sharp() -> Iterator[None]:
    """Names tell a random CLIP nothing, so left-out tasks would make what they tell as flat as may
    be: here it is heard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unlearned, "SHARPNESSES", (0.5, 1000.0))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def images(world: World) -> np.ndarray:
    return np.concatenate([test_images(world, task) for task in TASKS])


def _learned(world: World, where: Any, order: tuple[str, ...], **options: Any) -> RunFolder:
    known = {domain.name: domain for domain in world.domains}
    ordered = World([known[name] for name in order], world.backbone)
    method = {"name": "archipelago", "options": {"group": "off", **options}}
    chosen = run_settings(world, method=method, run_dir=str(where), evaluation=FAST)
    run = RunFolder(where)
    open_run(ordered, run, chosen)
    learn_stream(make_learner(ordered, run, chosen))
    return run


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The four domains with all switches on, and with CLIP's scores as they are."""
    return _learned(world, tmp_path_factory.mktemp("on") / "run", TASKS, debias=0.0, **ON)


@pytest.fixture(scope="module")
def model(run: RunFolder) -> LearnedModel:
    return LearnedModel.open(run.uri)


def _with(model: LearnedModel, **options: Any) -> State:
    """The same records under other switches."""
    settings = model.runtime.settings
    method = settings.method.model_copy(update={"options": {"group": "off", **options}})
    return build_state(
        model.state.groups,
        settings.model_copy(update={"method": method}),
        model.runtime.basis,
        backbone=model.runtime.backbone,
    )


def _asked(model: LearnedModel, state: State, images: np.ndarray, asked: Any) -> Question:
    view = model.runtime.view(state, images, model.runtime.texts(state))
    assert state.identifier is not None
    found = state.identifier.identify(Evidence(view.compact))
    return Question(state, match(asked, state.records), view, found)


def test_the_switches_are_off_unless_asked_for() -> None:
    options = ArchipelagoOptions()
    assert (options.joint, options.predicted, options.cca) == (0.0, 0.0, 0.0)
    for name in ON:
        changes = [c for c in VARIANTS.values() if f"method.options.{name}" in c]
        assert len(changes) == 1 and changes[0][f"method.options.{name}"] == ON[name]
        for bad in (-0.1, 1.1):
            with pytest.raises(ValueError, match=name):
                ArchipelagoOptions.model_validate({name: bad})


def test_off_is_the_formula_without_them_to_the_bit(
    model: LearnedModel, images: np.ndarray
) -> None:
    state = _with(model)
    names = [name for record in state.records.values() for name in record.classes]
    asked = tuple(Candidate(name) for name in [*names, *STRANGE])
    question = _asked(model, state, images, asked)
    said, view = question.answer(), question.view
    s = state.method.clip_scores(view, view.text(question.candidates.listed, None))
    np.testing.assert_array_equal(question.s_BO, s)
    known = np.zeros((len(images), len(question.candidates.known)))
    for column, task in enumerate(question.candidates.tasks):
        at, index = question.candidates.columns[task]
        function, listed = state.function(task), state.records[task].listed
        assert function is not None
        p = state.method.scores(view, function, listed)
        assert p is not None
        known[:, at] = question.log_shares[:, column, None] + p[:, index]
    known -= np.logaddexp.reduce(known, axis=1)[:, None]
    expected = known + np.log1p(-question.outside)[:, None]
    np.testing.assert_array_equal(said.log_known, expected)
    outside = log_softmax(s) + np.log(question.outside)[:, None]
    np.testing.assert_array_equal(said.log_outside, outside)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_joint_scores_is_mixed_in(
    model: LearnedModel, images: np.ndarray, share: float
) -> None:
    plain, state = _with(model), _with(model, joint=share)
    question = _asked(model, state, images, None)
    ours = np.exp(_asked(model, plain, images, None).answer().log_known)
    theirs = state.method.joint_scores(question.view)
    assert theirs is not None
    tasks = [question.candidates.columns[task] for task in question.candidates.tasks]
    joint = np.zeros_like(ours)
    for (at, index), task in zip(tasks, question.candidates.tasks, strict=True):
        joint[:, at] = theirs[task][:, index]
    expected = (1 - share) * ours + share * np.exp(log_softmax(joint))
    np.testing.assert_allclose(np.exp(question.answer().log_known), expected, atol=1e-12)
    assert np.abs(expected - ours).max() > 1e-3, "it says something else"


def test_who_is_certain_of_the_domain_is_not_contradicted(
    model: LearnedModel, images: np.ndarray
) -> None:
    """Shares of 0 stay 0, and one domain that is left answers alone, whatever the others' are."""
    question = _asked(model, _with(model, joint=0.5), images, None)
    assert question.found is not None
    shares = question.found.log_shares.copy()
    shares[:8] = certain(TASKS[1], sorted(TASKS), 8).log_shares
    shares[8:16, 2:] = -np.inf
    found = replace(question.found, log_shares=shares)
    known = {}
    for joint in (0.0, 0.5):
        state = _with(model, joint=joint)
        known[joint] = Question(state, question.candidates, question.view, found).answer().log_known
    np.testing.assert_array_equal(known[0.5][:8], known[0.0][:8])
    np.testing.assert_array_equal(np.isfinite(known[0.5]), np.isfinite(known[0.0]))
    np.testing.assert_allclose(np.exp(known[0.5]).sum(axis=1), 1.0)
    assert np.abs(np.exp(known[0.5][8:16]) - np.exp(known[0.0][8:16])).max() > 1e-4


@pytest.mark.parametrize("switch", ["predicted", "cca"])
def test_texts_share_out_what_clip_gives_the_unlearned(
    model: LearnedModel, images: np.ndarray, switch: str
) -> None:
    plain, state = _with(model), _with(model, **{switch: 0.3})
    asked = tuple(Candidate(name) for name in ["boats 1", "cats 0", *STRANGE])
    off, on = (_asked(model, each, images, asked) for each in (plain, state))
    assert on.candidates.unknown.tolist() == [False, False, True, True, True, True]
    np.testing.assert_allclose(on.outside, off.outside, atol=1e-12)
    np.testing.assert_array_equal(on.s_BO[:, :2], off.s_BO[:, :2])
    method = state.method
    assert isinstance(method, Archipelago)
    ((_, told),) = method._told
    scores = told.scores(on.view.compact, on.view.text(class_list(STRANGE), None))
    assert scores is not None
    expected = log_softmax(off.s_BO[:, 2:] + 0.3 * scores)
    np.testing.assert_allclose(log_softmax(on.s_BO[:, 2:]), expected, atol=1e-12)
    assert np.abs(np.exp(expected) - np.exp(log_softmax(off.s_BO[:, 2:]))).max() > 1e-2
    listed = class_list(STRANGE)
    assert on.found is not None
    said = blind(state, on.view, on.found, listed, np.ones(len(images)))
    np.testing.assert_allclose(said, expected, atol=1e-12)


def test_classes_of_one_domain_get_its_answer_and_weight_0_is_frozen_clip(
    model: LearnedModel, images: np.ndarray
) -> None:
    """Invariant 10, with the switches on; unknown names only where texts have no weight."""
    for task in TASKS:
        own = [(task, name) for name in model.tasks[task].classes]
        asked = model.answer(images, candidates=own, top_k=9)
        given = model.answer(images, task=task, top_k=9)
        assert [a.classes for a in asked] == [a.classes for a in given], "to the bit"
    view = _asked(model, model.state, images, None).view
    frozen = log_softmax(model.state.method.clip_scores(view, view.text(class_list(STRANGE), None)))
    asked = tuple(Candidate(name) for name in STRANGE)
    for options, equal in ((ON, False), ({"joint": 0.5}, True)):
        said = _asked(model, _with(model, debias=0.0, **options), images, asked).answer()
        assert np.array_equal(said.log_outside, frozen) == equal


def test_forgetting_gives_the_model_that_never_met_the_domain(
    world: World, images: np.ndarray, tmp_path: Any
) -> None:
    """Invariant 9, with the switches on."""
    whole = _learned(world, tmp_path / "whole", TASKS, **ON)
    forget_task(whole.uri, TASKS[1], SERVING).finish(erase=True)
    never = _learned(world, tmp_path / "never", (TASKS[3], TASKS[0], TASKS[2]), **ON)
    forgot, other = (LearnedModel.open(run.uri) for run in (whole, never))
    assert list(forgot.tasks) != list(other.tasks)
    plain = _with(forgot)
    for asked in (None, STRANGE, ["boats 1", "cats 0", *STRANGE], [("doors", "doors 1"), "yak"]):
        said = forgot.answer(images, candidates=asked, top_k=99)
        assert said == other.answer(images, candidates=asked, top_k=99)
        if asked is None or len(asked) > 2:
            wished = None if asked is None else tuple(Candidate(str(name)) for name in asked)
            off = np.exp(
                _asked(forgot, plain, images, wished)
                .answer()
                .log_names(match(wished, plain.records))
            )
            assert [a.classes[0][1] for a in said] != off.max(axis=1).tolist(), "they do something"


def test_what_is_measured_is_what_is_answered(
    world: World, run: RunFolder, images: np.ndarray
) -> None:
    """Invariant 11, with the switches on, also of domains that are still to come."""
    model = LearnedModel.open(run.uri, manifest=3)
    learner = make_learner(world, run, model.runtime.settings)
    for stage in range(3):
        learner._done = run.completed_stages()
        learner.learn(stage)
    pairs = stream_pairs(world.domains)
    for domain in world.domains:
        labels, view = learner.evaluator.labels(domain.name), learner.evaluator.view(domain.name)
        assert learner.state.identifier is not None
        found = learner.state.identifier.identify(learner.evaluator.evidence(domain.name))
        right = learner.evaluator.measured(learner.state, domain.name, found).right
        said = model.answer(test_images(world, domain.name, 99), pairs, top_k=len(pairs))
        wanted = [domain.classes[label] for label in labels]
        assert right["xtail_merged"].tolist() == [
            a.classes[0][0] == b for a, b in zip(said, wanted, strict=True)
        ]
        question = Question(learner.state, match(pairs, learner.state.records), view, found)
        measured = np.exp(question.answer().log_names(question.candidates))
        names = question.candidates.names
        answered = [[dict(answer.classes)[name] for name in names] for answer in said]
        np.testing.assert_allclose(answered, measured, atol=1e-4)


def test_python_and_the_endpoint_say_the_same_to_the_bit(
    run: RunFolder, model: LearnedModel, images: np.ndarray
) -> None:
    point(run, len(TASKS))
    served = ServedModel(run.uri, SERVING, "cpu")
    for ask in (Ask(top_k=16), Ask(labels=("boats 1", "cats 0", *STRANGE), top_k=16)):
        _, answers, _ = served.classify(images, [ask] * len(images))
        labels = None if ask.labels is None else list(ask.labels)
        assert model.answer(images, labels, top_k=16) == answers


def test_runs_that_began_before_the_switches_go_on(run: RunFolder) -> None:
    stored = run.read()
    before, now = (copy.deepcopy(stored["config"]) for _ in range(2))
    for name in ON:
        before["method"]["options"].pop(name)
        now["method"]["options"][name] = 0.0
    older = {**stored, "config": before}
    check_continues(older, now, stored["stream"])
    now["method"]["options"]["joint"] = 0.5
    with pytest.raises(UserError, match=r"method\.options\.joint was 'unset' and is now 0\.5"):
        check_continues(older, now, stored["stream"])
