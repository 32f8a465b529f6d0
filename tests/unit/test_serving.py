"""The served model without Ray and HTTP: one mixed pass, generations, canary, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.engine import Engine, EngineSpec
from pipeline.identifiers import Evidence, Identification, Identifier
from pipeline.model.fusion import fuse, softmax
from pipeline.model.kernels import Kernels
from pipeline.serving.asking import Ask
from pipeline.serving.model import ServedModel
from pipeline.serving.pointer import (
    Pointer,
    Refused,
    history,
    next_pointer,
    read_pointer,
    write_pointer,
)
from pipeline.store import RunFolder
from pipeline.store.tensors import dump, load
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, copy_run, point, test_images

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


def _mixed(world: World) -> tuple[np.ndarray, list[str]]:
    parts = [test_images(world, task) for task in TASKS]
    return np.concatenate(parts), [t for t, p in zip(TASKS, parts, strict=True) for _ in p]


def test_a_given_task_answers_with_the_logits_of_the_evaluation(
    model: ServedModel, run: RunFolder, world: World
) -> None:
    images, tasks = _mixed(world)
    _, answers, spent = model.classify(images, [Ask(task, top_k=9) for task in tasks])
    engine = Engine(EngineSpec(model.settings, run.uri, Kernels()))
    engine.install(run.groups.list())
    for domain in world.domains:
        learned = model.current.tasks[domain.name]
        rows = [i for i, task in enumerate(tasks) if task == domain.name]
        logits = engine.logits(
            domain.tables["test"], np.arange(len(rows)), domain.name,
            domain.classes, domain.templates,
        )  # fmt: skip
        expected = softmax(logits, learned.temperature)
        for row, p_C in zip(rows, expected, strict=True):
            said = dict(answers[row].classes)
            assert [said[c] for c in domain.classes] == pytest.approx(p_C.tolist(), abs=1e-4)
            assert answers[row].groups[0] == (domain.name, 1.0)
            assert not answers[row].unseen and answers[row].task_confidence == 1.0
    assert spent.keys() == {"identify", "groups", "text"}
    borrowed = {len(answer.groups) for answer in answers}
    assert borrowed == {1, 2}, "some function borrows, and says so"


def test_identified_images_are_those_the_identifier_chooses(
    model: ServedModel, world: World
) -> None:
    images, _ = _mixed(world)
    generation, answers, _ = model.classify(images, [Ask()] * len(images))
    assert generation == 1
    settings = model.settings
    engine = Engine(EngineSpec(settings, model.run.uri, Kernels()))
    found = model.current.identifier.identify(Evidence(engine.encode(images)))
    chosen = [found.options[o] if o >= 0 else None for o in found.chosen]
    assert [answer.task for answer in answers] == chosen
    assert {answer.unseen for answer in answers} == {task is None for task in chosen}
    assert len(set(chosen) - {None}) > 1
    for index, answer in enumerate(answers):
        assert answer.task_confidence == pytest.approx(
            found.probabilities[index, found.chosen[index]], abs=1e-6
        )


class _AllUnseen:
    """The model's identifier, but it decides that nothing is known."""

    def __init__(self, identifier: Identifier) -> None:
        self.identifier = identifier

    def identify(self, evidence: Evidence) -> Identification:
        found = self.identifier.identify(evidence)
        return replace(found, chosen=np.full(len(found.chosen), -1))


def test_unseen_images_are_fused_with_the_two_likeliest_groups(
    run: RunFolder, world: World
) -> None:
    model = ServedModel(run.uri, SERVING, "cpu")
    known = model.current.identifier
    model._current = replace(model.current, identifier=_AllUnseen(known))  # type: ignore[arg-type]
    domain = world.domains[1]
    images, labels = test_images(world, domain.name), ("red thing", "blue thing", "car")
    _, answers, _ = model.classify(images, [Ask(labels=labels, top_k=3)] * len(images))
    engine = Engine(EngineSpec(model.settings, run.uri, Kernels()))
    engine.install(run.groups.list())
    rows, table = np.arange(len(images)), domain.tables["test"]
    frozen = softmax(engine.logits(table, rows, None, labels, ("a photo of a {}.",)))
    found = known.identify(Evidence(engine.encode(images)))
    for row, answer in enumerate(answers):
        best = np.argsort(-found.shares[row], kind="stable")[:2]
        groups = []
        for option in best:
            task = model.current.tasks[found.options[option]]
            logits = engine.logits(
                table, rows[row : row + 1], task.name, labels, task.card["templates"]
            )
            groups.append(softmax(logits, task.temperature)[0])
        share = np.maximum(found.shares[row, best], 1e-12)[None]
        weight = model.current.weight
        expected = fuse(frozen[row : row + 1], np.stack(groups)[None], share, weight)[0]
        said = dict(answer.classes)
        assert [said[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer.unseen and answer.task is None and answer.weight == weight > 0
        assert sum(w for _, w in answer.groups) == pytest.approx(weight)
    _, plain, _ = model.classify(images, [Ask(top_k=99)] * len(images))
    for answer in plain:
        assert {label for label, _ in answer.classes} == set(model.current.labels)
        assert sum(p for _, p in answer.classes) == pytest.approx(1.0)


def test_an_answer_does_not_depend_on_its_batch(model: ServedModel, world: World) -> None:
    images, tasks = _mixed(world)
    asks = [Ask(task if i % 3 == 0 else None, ("a", "b") if i % 4 == 0 else None)
            for i, task in enumerate(tasks)]  # fmt: skip
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
    assert after == before, "the same to the bit"
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
    "labels": ("identity.safetensors", lambda k, v: v[:-1] if k == "classes" else v, "do not fit"),
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
        card = json.loads(data)
        del card["calibration"]["identifier"]
        return json.dumps(card).encode()

    version = _rewrite(mine, 2, "task.json", damage)
    with pytest.raises(Refused, match=rf"manifest {version} cannot be put together \(KeyError"):
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
