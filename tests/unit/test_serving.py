"""The served model without Ray and HTTP: one mixed pass, generations, canary, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from archipelago.pipeline.errors import Refused
from archipelago.pipeline.identifiers import Evidence
from archipelago.pipeline.learned import Answer, Ask
from archipelago.pipeline.learned.answering import Question
from archipelago.pipeline.learned.candidates import match
from archipelago.pipeline.learner import Learner
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import class_list
from archipelago.pipeline.serving.model import ServedModel, run_settings
from archipelago.pipeline.serving.pointer import (
    Pointer,
    history,
    next_pointer,
    read_pointer,
    write_pointer,
)
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import dump, load
from tests.unit.tiny_run import TASKS, World, make_learner
from tests.unit.tiny_serving import SERVING, copy_run, learned_run, point, test_images

LAST = len(TASKS)


@pytest.fixture(scope="module")
def world(served_world: World) -> World:
    return served_world


@pytest.fixture(scope="module")
def run(served_run: RunFolder) -> RunFolder:
    return served_run


@pytest.fixture(scope="module")
def model(run: RunFolder) -> ServedModel:
    return ServedModel(run.uri, SERVING, "cpu")


@pytest.fixture(scope="module")
def learner(run: RunFolder, world: World, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """What measured the run, with everything restored."""
    mine = copy_run(run, tmp_path_factory.mktemp("measured") / "run")
    found = make_learner(world, mine, run_settings(mine.read()))
    with mine.lock():
        assert found.restore() == []
    return found


def _mixed(world: World) -> tuple[np.ndarray, list[str]]:
    parts = [test_images(world, task) for task in TASKS]
    return np.concatenate(parts), [t for t, p in zip(TASKS, parts, strict=True) for _ in p]


def _all_classes(answer: Answer, names: tuple[str, ...]) -> list[float]:
    said = dict(answer.classes)
    return [said[name] for name in names]


def test_a_given_task_answers_as_it_was_measured(
    model: ServedModel, learner: Learner, world: World
) -> None:
    images, tasks = _mixed(world)
    _, answers, spent = model.classify(images, [Ask(task, top_k=9) for task in tasks])
    for domain in world.domains:
        rows = [i for i, task in enumerate(tasks) if task == domain.name]
        state, view = learner.state, learner.evaluator.view(domain.name)
        candidates = match(None, state.records, domain.name)
        question = Question(state, candidates, view.take(np.arange(len(rows))), None, domain.name)
        expected = np.exp(question.answer().log_known)
        for row, p_C in zip(rows, expected, strict=True):
            said = _all_classes(answers[row], tuple(domain.classes))
            assert said == pytest.approx(p_C.tolist(), abs=1e-4)
            assert answers[row].groups[0] == (domain.name, 1.0)
            assert not answers[row].unseen and answers[row].task_confidence == 1.0
            assert answers[row].domains[0] == (domain.name, 1.0)
    assert spent.keys() == {"trunk", "identify", "groups", "text"}
    borrowed = {len(answer.groups) for answer in answers}
    assert borrowed == {1, 2}, "some function borrows, and says so"


def test_identified_images_are_those_the_identifier_chooses(
    model: ServedModel, learner: Learner, world: World
) -> None:
    images, tasks = _mixed(world)
    generation, answers, _ = model.classify(images, [Ask()] * len(images))
    assert generation == 1
    identifier = learner.state.identifier
    assert identifier is not None
    for domain in world.domains:
        rows = [i for i, task in enumerate(tasks) if task == domain.name]
        compact = learner.evaluator.view(domain.name).compact[: len(rows)]
        found = identifier.identify(Evidence(compact))
        for at, row in enumerate(rows):
            answer, shares = answers[row], np.exp(found.log_shares[at])
            assert answer.task == found.options[found.closed[at]]
            assert answer.task_confidence == pytest.approx(shares.max(), abs=1e-4)
            assert dict(answer.domains) == pytest.approx(
                dict(zip(found.options, shares.tolist(), strict=True)), abs=1e-4
            )
            assert answer.domains[0][0] == answer.task
            assert answer.unseen_probability == pytest.approx(found.unseen[at], abs=1e-4)
    assert not any(answer.unseen for answer in answers), "there is nothing else to choose from"
    assert {answer.task for answer in answers} == set(TASKS)
    assert any((answer.unseen_probability or 0) > 0.3 for answer in answers)


def test_names_nobody_learned_are_for_frozen_clip_and_the_likeliest_groups(
    model: ServedModel, learner: Learner, world: World
) -> None:
    domain, names = world.domains[1], ("red thing", "blue thing", "car")
    images, listed = test_images(world, domain.name), class_list(names)
    _, answers, _ = model.classify(images, [Ask(labels=names, top_k=3)] * len(images))
    state, view = learner.state, learner.evaluator.view(domain.name).take(np.arange(len(images)))
    frozen = np.exp(log_softmax(state.method.clip_scores(view, view.text(listed, None))))
    assert state.identifier is not None
    found = state.identifier.identify(Evidence(view.compact))
    weight = state.weight
    for row, answer in enumerate(answers):
        best = np.argsort(-found.log_shares[row], kind="stable")[:2]
        share = np.exp(found.log_shares[row, best])
        expected = (1 - weight) * frozen[row]
        for option, part in zip(best, share / share.sum(), strict=True):
            function = state.function(found.options[option])
            assert function is not None
            scores = state.method.scores(view.take(np.array([row])), function, listed)
            assert scores is not None
            expected += weight * part * np.exp(scores[0])
        assert _all_classes(answer, names) == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer.unseen and answer.task is None and answer.weight == weight > 0
        assert answer.task_confidence == 1.0, "there is no other possibility"
        assert sum(w for _, w in answer.groups) == pytest.approx(weight)


def test_a_given_task_alone_speaks_where_it_knows_no_name(
    model: ServedModel, learner: Learner, world: World
) -> None:
    """p(t|x) = 1 (method 7.5), whatever the statistics say."""
    images, names = test_images(world, TASKS[1]), ("red thing", "blue thing")
    _, answers, _ = model.classify(images, [Ask(TASKS[3], names)] * len(images))
    for answer in answers:
        assert (answer.task, answer.unseen) == (TASKS[3], True)
        assert answer.groups == ((TASKS[3], pytest.approx(learner.state.weight)),)
        assert answer.domains[0] == (TASKS[3], 1.0)


def test_known_and_unknown_names_together(model: ServedModel, world: World) -> None:
    """An image is taken for one or the other, and only names of that kind have any probability."""
    images, tasks = _mixed(world)
    noise = np.random.default_rng(0).integers(0, 256, (4, *images.shape[1:]), dtype=np.uint8)
    images, tasks = np.concatenate([images, noise]), [*tasks, *["noise"] * len(noise)]
    names = (f"{TASKS[0]} 1", f"{TASKS[0]} 2", "red thing")
    _, answers, _ = model.classify(images, [Ask(labels=names)] * len(images))
    seen = [answer for answer in answers if not answer.unseen]
    assert seen and len(seen) < len(answers)
    for answer in answers:
        best = answer.classes[0][0]
        assert sum(p for _, p in answer.classes) == pytest.approx(1.0)
        assert (best == "red thing") == answer.unseen
        assert answer.task == (None if answer.unseen else TASKS[0])
        assert answer.task_confidence >= 0.5
    own = [a for a, task in zip(answers, tasks, strict=True) if task == TASKS[0] and not a.unseen]
    assert own, "some of its own images are recognised"


def test_images_that_look_too_new_are_refused_where_the_settings_say_so(
    run: RunFolder, model: ServedModel, world: World
) -> None:
    images, _ = _mixed(world)
    noise = np.random.default_rng(0).integers(0, 256, (4, *images.shape[1:]), dtype=np.uint8)
    images = np.concatenate([images, noise])
    _, plain, _ = model.classify(images, [Ask()] * len(images))
    strict = ServedModel(run.uri, SERVING.model_copy(update={"abstain": 0.05}), "cpu")
    _, answers, _ = strict.classify(images, [Ask()] * len(images))
    identifier = strict.current.state.identifier
    assert identifier is not None
    view = strict.runtime.view(strict.current.state, images, strict.current.texts)
    novelty = identifier.identify(Evidence(view.compact)).novelty
    threshold = identifier.refusal_threshold(0.05)
    assert threshold is not None
    for answer, before, r in zip(answers, plain, novelty, strict=True):
        assert not before.refused
        assert answer.refused == (r > threshold)
        assert answer.classes == (() if answer.refused else before.classes)
        assert answer.unseen_probability == before.unseen_probability
    refused = [answer.refused for answer in answers]
    assert all(refused[-len(noise) :]), "noise is no colour"
    assert sum(refused[: -len(noise)]) < len(images) / 4
    _, given, _ = strict.classify(noise, [Ask(TASKS[0])] * len(noise))
    assert not any(answer.refused for answer in given), "whoever gives the domain is believed"


def test_methods_that_answer_by_every_task(world: World, tmp_path: Path) -> None:
    """Closed forms are served too: without weights, to the same contract."""
    run = learned_run(world, tmp_path / "run", method={"name": "gda_per_task"})
    point(run, LAST)
    model = ServedModel(run.uri, SERVING, "cpu")
    images, tasks = _mixed(world)
    _, answers, _ = model.classify(images, [Ask(top_k=99)] * len(images))
    names = {name for record in model.current.tasks.values() for name in record.classes}
    for answer in answers:
        assert {label for label, _ in answer.classes} == names
        assert sum(p for _, p in answer.classes) == pytest.approx(1.0)
    right = np.mean([a.task == task for a, task in zip(answers, tasks, strict=True)])
    assert right > 0.8
    point(run, 2)
    assert model.follow().manifest == 2


def test_an_answer_does_not_depend_on_its_batch(model: ServedModel, world: World) -> None:
    images, tasks = _mixed(world)
    asks = [
        Ask(task if i % 3 == 0 else None, ("a", "b") if i % 4 == 0 else None)
        for i, task in enumerate(tasks)
    ]
    _, together, _ = model.classify(images, asks)
    for row in (0, 5, 7, len(images) - 1):
        _, (alone,), _ = model.classify(images[row : row + 1], [asks[row]])
        assert alone.task == together[row].task
        for (a, p), (b, q) in zip(alone.classes, together[row].classes, strict=True):
            assert a == b and p == pytest.approx(q, abs=1e-4)


def test_generations_grow_and_old_answers_stay(
    run: RunFolder, world: World, tmp_path: Path
) -> None:
    mine = copy_run(run, tmp_path / "run")
    point(mine, 1)
    model = ServedModel(mine.uri, SERVING, "cpu")
    assert list(model.current.tasks) == [TASKS[0]]
    images = test_images(world, TASKS[0])
    _, before, _ = model.classify(images, [Ask(TASKS[0])] * len(images))
    with pytest.raises(KeyError, match=TASKS[2]):
        model.classify(images, [Ask(TASKS[2])] * len(images))
    candidate = next_pointer(mine, LAST)
    changes = model.prepare(candidate)
    assert changes[TASKS[0]] == 0.0 and set(changes) == set(TASKS)
    assert model.current.pointer.manifest == 1, "prepared is not activated"
    same = Pointer(candidate.generation, 2, "another manifest under the same number")
    assert model.activate(same).manifest == 1
    write_pointer(mine, candidate, "publish")
    assert model.activate(candidate) == candidate
    _, after, _ = model.classify(images, [Ask(TASKS[0])] * len(images))
    for a, b in zip(after, before, strict=True):
        assert (a.classes, a.groups) == (b.classes, b.groups), "the same to the bit"
    assert model.activate(read_pointer(run)) == candidate, "never backwards"
    point(mine, 2)
    assert model.follow().manifest == 2 and len(model.current.tasks) == 2
    assert [(e["generation"], e["manifest"]) for e in history(mine)][-2:] == [(3, LAST), (4, 2)]


def test_before_the_first_manifest_frozen_clip_answers(
    run: RunFolder, world: World, tmp_path: Path
) -> None:
    mine = copy_run(run, tmp_path / "run")
    mine.folder.delete("serving.json")
    model = ServedModel(mine.uri, SERVING, "cpu")
    images = test_images(world, TASKS[0])
    generation, answers, _ = model.classify(images, [Ask(), *[Ask(labels=("x", "y"))] * 5])
    assert generation == 0 and all(answer.unseen and answer.weight == 0 for answer in answers)
    assert answers[0].classes == () and len(answers[1].classes) == 2


def _rewrite(run: RunFolder, stage: int, file: str, change: object) -> int:
    """Commit a changed group under a manifest of its own; returns the manifest's version."""
    refs = run.groups.list()
    ref = refs[stage]
    files = {name: run.groups.read(ref, name) for name in run.groups.files(ref)}
    files[file] = change(files[file])  # type: ignore[operator]
    with run.lock():
        refs[stage] = run.groups.write(ref.stage, ref.name, files, replace=True)
        return run.models.publish(refs[: stage + 1], again=True)


def _tensors(change: object) -> object:
    def changed(data: bytes) -> bytes:
        tensors = load(data)
        return dump({k: change(k, v) for k, v in tensors.items()})  # type: ignore[operator]

    return changed


BAD = {
    "nan": ("group.safetensors", lambda k, v: v * float("nan") if k == "image.A" else v, "finite"),
    "shape": ("group.safetensors", lambda k, v: v[:, :-1] if k == "image.A" else v, "does not fit"),
    "backbone": ("group.safetensors", lambda k, v: v.flip(1) if k == "image.B" else v, "another"),
    "labels": (
        "identity.safetensors",
        lambda k, v: v[:-1] if "own" in k else v,
        "do not fit its 4",
    ),
    "width": ("identity.safetensors", lambda k, v: v[:, :-1] if "means" in k else v, "width 23"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_group_is_refused_and_the_old_generation_keeps_answering(
    kind: str, run: RunFolder, world: World, tmp_path: Path
) -> None:
    mine = copy_run(run, tmp_path / "run")
    point(mine, 2)
    model = ServedModel(mine.uri, SERVING, "cpu")
    file, change, reason = BAD[kind]
    bad = next_pointer(mine, _rewrite(mine, 2, file, _tensors(change)))
    with pytest.raises(Refused, match=reason) as refusal:
        model.prepare(bad)
    assert "\n" not in str(refusal.value) and TASKS[2] in str(refusal.value)
    assert model.activate(bad).manifest == 2
    assert list(model.current.tasks) == list(TASKS[:2])
    assert ServedModel(mine.uri, SERVING, "cpu").current.pointer == read_pointer(mine)


def test_a_group_that_does_not_fit_the_others_is_refused_too(
    run: RunFolder, tmp_path: Path
) -> None:
    mine = copy_run(run, tmp_path / "run")
    point(mine, 2)
    model = ServedModel(mine.uri, SERVING, "cpu")

    def damage(data: bytes) -> bytes:
        return dump({k: v for k, v in load(data).items() if "sums/" not in k})

    version = _rewrite(mine, 2, "identity.safetensors", damage)
    said = rf"manifest {version} cannot be put together \(ValueError: task '{TASKS[2]}' has no stat"
    with pytest.raises(Refused, match=said):
        model.prepare(next_pointer(mine, version))
    assert list(model.current.tasks) == list(TASKS[:2])


def test_other_refusals(run: RunFolder, model: ServedModel, tmp_path: Path) -> None:
    mine = copy_run(run, tmp_path / "run")
    other = ServedModel(mine.uri, SERVING, "cpu")
    with pytest.raises(Refused, match="no manifest 99"):
        other.prepare(Pointer(9, 99, "x"))
    with pytest.raises(Refused, match="not the one that was published"):
        other.prepare(Pointer(9, 1, "x"))
    strict = SERVING.model_copy(
        update={"canary": SERVING.canary.model_copy(update={"floor": 1.01})}
    )
    mine.folder.delete("serving.json")
    picky = ServedModel(mine.uri, strict, "cpu")
    with pytest.raises(Refused, match="of its probe images right"):
        picky.prepare(next_pointer(mine, 1))
    ref = mine.groups.list()[0]
    assert mine.folder.local is not None
    file = mine.folder.local / "groups" / ref.folder / "group.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(Refused, match="sha256"):
        ServedModel(mine.uri, SERVING, "cpu").prepare(next_pointer(mine, 1))
    document = json.loads(mine.folder.read("run.json"))
    document["backbone"]["sha256"] = "0" * 64
    mine.folder.write_json("run.json", document)
    with pytest.raises(ValueError, match="other weights"):
        ServedModel(mine.uri, SERVING, "cpu")
