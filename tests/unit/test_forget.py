"""Forgetting a domain: the others as if it had never been, dependents mixed anew, nothing left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archipelago.jobs import forget as job
from archipelago.pipeline.benchmark.synthetic import learned as records_of
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.learned import Answer, Ask
from archipelago.pipeline.lifecycle import retest
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.lifecycle.retest import score_changes
from archipelago.pipeline.serving.model import ServedModel, run_settings
from archipelago.pipeline.serving.pointer import next_pointer, read_pointer, write_pointer
from archipelago.pipeline.store import GroupRef, RunFolder
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.streams import ImageTable
from tests.unit.tiny_run import TASKS, World, learn_stream, make_learner
from tests.unit.tiny_serving import SERVING, copy_run, learned_run, point, test_images


@pytest.fixture(scope="module")
def world(served_world: World) -> World:
    return served_world


@pytest.fixture(scope="module")
def learned(served_run: RunFolder) -> RunFolder:
    return served_run


def _neighbours(run: RunFolder) -> dict[str, list[str]]:
    found = {}
    for ref in run.groups.list():
        card = json.loads(run.groups.read(ref, "task.json"))
        found[ref.name] = [n["task"] for n in card["neighbours"]]
    return found


def _borrowed_from(run: RunFolder) -> tuple[str, list[str]]:
    """A domain that others borrowed from, and these."""
    lenders = _neighbours(run)
    task = next(names[0] for names in lenders.values() if names)
    return task, [name for name, names in lenders.items() if task in names]


def _said(answers: list[Answer]) -> list[Any]:
    """What a given domain's function says; how new an image looks is for all domains to say."""
    return [(answer.task, answer.classes, answer.groups) for answer in answers]


def test_a_group_nobody_borrows_from_leaves_the_others_to_the_bit(
    learned: RunFolder, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, last = copy_run(learned, tmp_path / "run"), TASKS[-1]
    model = ServedModel(run.uri, SERVING, "cpu")
    images = np.concatenate([test_images(world, task) for task in TASKS[:-1]])
    asks = [Ask(task, None, 9) for task in TASKS[:-1] for _ in range(6)]
    _, before, _ = model.classify(images, asks)
    assert job.main([f"run_dir={run.uri}", f"task={last}", "erase=true"]) == 0
    zero = ", ".join(f"{name} 0" for name in TASKS[:-1])
    assert (
        f"largest change of a log-probability on stored images: {zero}\n" in capsys.readouterr().out
    )
    assert model.follow().generation == 2, "what serves the run follows"
    _, after, _ = model.classify(images, asks)
    assert _said(after) == _said(before)
    assert list(model.current.tasks) == list(TASKS[:-1])
    never = copy_run(learned, tmp_path / "never")
    point(never, len(TASKS) - 1)
    other = ServedModel(never.uri, SERVING, "cpu")
    free = [Ask()] * len(images)
    assert model.classify(images, free)[1] == other.classify(images, free)[1], "the identifier too"
    event = run.journal.last("forgotten")
    assert event and event["task"] == last and event["erased"] and event["dependents"] == []
    left = list(Path(run.uri).rglob(f"*{last}*"))
    assert left == [] and last not in run.forgotten() - {last}
    assert run.completed_stages().keys() == {0, 1, 2}
    with pytest.raises(UserError, match="not learned"):
        forget_task(run.uri, last, SERVING)


def test_a_model_that_cannot_be_loaded_is_no_reason_not_to_forget(
    learned: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise UserError("backbone.name: it is gone")

    run, last = copy_run(learned, tmp_path / "run"), TASKS[-1]
    monkeypatch.setattr("archipelago.pipeline.lifecycle.retest.Runtime", gone)
    assert job.main([f"run_dir={run.uri}", f"task={last}", "erase=true"]) == 0
    said = capsys.readouterr().out
    assert f"{last} is forgotten" in said and "largest change" not in said
    assert last not in [ref.name for ref in run.groups.list()]


def test_dependents_are_mixed_anew_and_measured(
    learned: RunFolder, world: World, tmp_path: Path
) -> None:
    run = copy_run(learned, tmp_path / "run")
    task, losing = _borrowed_from(run)
    kept = [name for name in TASKS if name not in (*losing, task)]
    model = ServedModel(run.uri, SERVING, "cpu")
    images = test_images(world, TASKS[0])
    asks = [Ask(name, None, 9) for name in (*kept, *losing) for _ in images]
    many = np.concatenate([images] * (len(kept) + len(losing)))
    _, before, _ = model.classify(many, asks)
    plan = forget_task(run.uri, task, SERVING)
    assert [d["task"] for d in plan.dependents] == losing
    assert all(d["rule"] == "remix" and d["change"] > 0 for d in plan.dependents)
    changes = score_changes(plan)
    assert [name for name, change in changes.items() if change == 0.0] == kept
    assert {d["task"]: pytest.approx(d["change"], abs=1e-5) for d in plan.dependents} == {
        name: changes[name] for name in losing
    }
    pointer = next_pointer(run, plan.manifest)
    model.prepare(pointer)
    write_pointer(run, pointer, "forget")
    model.activate(pointer)
    told = plan.finish(erase=False)
    assert told["erased"] == []
    _, after, _ = model.classify(many, asks)
    same = len(images) * len(kept)
    assert _said(after[:same]) == _said(before[:same])
    assert all(task not in dict(answer.groups) for answer in after)
    changed = zip(after[same:], before[same:], strict=True)
    assert any(a.classes != b.classes for a, b in changed)
    for ref in run.models.read(plan.manifest).groups:
        if ref.name in losing:
            mix = load(run.groups.read(ref, "group.safetensors"))["image.mix"]
            assert ref.folder.endswith("+2") and (mix[0] == 1).all()
    assert run.completed_stages().keys() == set(range(len(TASKS))) - {TASKS.index(task)}
    point(run, len(TASKS))
    assert task in ServedModel(run.uri, SERVING, "cpu").current.tasks, "not erased: a way back"
    again = forget_task(run.uri, task, SERVING)
    assert again.manifest == plan.manifest
    removed = again.finish(erase=True)["erased"]
    assert f"groups/{TASKS.index(task):03d}-{task}" in removed
    assert read_pointer(run).generation == 3


@pytest.mark.parametrize(
    "method",
    [{"name": "gda_per_task"}, {"name": "archipelago", "options": {"group": "on"}}],
    ids=lambda method: method["name"],
)
def test_what_borrows_nothing_forgets_as_if_the_domain_had_never_been(
    method: dict[str, Any], world: World, tmp_path: Path
) -> None:
    """Learned a, b, c, d and forgot b = learned d, c, a: to the bit, whatever is asked."""
    gone = TASKS[1]
    run = learned_run(world, tmp_path / "run", method=method)
    plan = forget_task(run.uri, gone, SERVING)
    assert plan.dependents == []
    plan.finish(erase=True)
    others = [domain for domain in reversed(world.domains) if domain.name != gone]
    never = learned_run(replace(world, domains=others), tmp_path / "never", method=method)
    images = np.concatenate([test_images(world, task) for task in TASKS])
    asks = [Ask(top_k=99), Ask(labels=(f"{TASKS[0]} 1", "car")), Ask(labels=("car", "bus"))]
    wishes = [asks[at % 3] for at in range(len(images))]
    answers = []
    assert not [ref for ref in run.groups.list() if ref.name == gone]
    for each in (run, never):
        point(each, each.models.versions()[-1])
        answers.append(ServedModel(each.uri, SERVING, "cpu").classify(images, wishes)[1])
    for mine, other in zip(*answers, strict=True):
        assert dict(mine.classes) == dict(other.classes)
        assert replace(mine, classes=()) == replace(other, classes=())
    assert {bool(group.tensors) for group in records_of(run)} == {method["name"] == "archipelago"}


def test_dependents_are_learned_again_by_the_next_start(
    learned: RunFolder, world: World, tmp_path: Path
) -> None:
    run = copy_run(learned, tmp_path / "run")
    task, losing = _borrowed_from(run)
    plan = forget_task(run.uri, task, SERVING.model_copy(update={"dependents": "retrain"}))
    plan.finish(erase=False)
    names = [ref.name for ref in run.models.read(plan.manifest).groups]
    assert names == [name for name in TASKS if name not in (*losing, task)]
    learn_stream(make_learner(world, run, run_settings(run.read())))
    now = {ref.name: ref for ref in run.models.latest().groups}  # type: ignore[union-attr]
    assert set(now) == set(TASKS) - {task}, "learned again, and the forgotten one is not"
    cards = [json.loads(run.groups.read(ref, "task.json")) for ref in now.values()]
    assert all(task not in [n["task"] for n in card["neighbours"]] for card in cards)


def test_dependents_are_measured_on_the_test_split(
    learned: RunFolder,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copy_run(learned, tmp_path / "run")
    lenders = _neighbours(run)
    task = next(names[0] for names in lenders.values() if names)
    losing = {name for name, names in lenders.items() if task in names}
    document = run.read()
    stream = {**document["config"]["stream"], "reader": "parquet"}
    document["config"]["stream"] = {**stream, "root": str(world.backbone.parent / "nowhere")}
    run.folder.write_json("run.json", document)
    aside = copy_run(run, tmp_path / "aside")
    assert job.main([f"run_dir={aside.uri}", f"task={task}"]) == 0
    said = capsys.readouterr().out
    assert "not measured on the test split: the stream cannot be read" in said
    assert "on its probes" in said
    document["config"]["stream"]["root"] = str(world.backbone.parent / "stream")
    run.folder.write_json("run.json", document)

    def right(model: ServedModel) -> dict[str, float]:
        found = {}
        for domain in world.domains:
            if domain.name in losing:
                images = test_images(world, domain.name, 100)
                _, answers, _ = model.classify(images, [Ask(domain.name, None, 1)] * len(images))
                labels = ImageTable.open(domain.tables["test"]).labels
                classes = model.current.tasks[domain.name].classes
                hits = [a.classes[0][0] == classes[k] for a, k in zip(answers, labels, strict=True)]
                found[domain.name] = 100.0 * float(np.mean(hits))
        return found

    measured: list[dict[str, str]] = []
    accuracies = retest._accuracies

    def watched(run: RunFolder, settings: Any, refs: list[GroupRef], domains: Any) -> Any:
        measured.append({ref.name: ref.folder for ref in refs})
        return accuracies(run, settings, refs, domains)

    monkeypatch.setattr(retest, "_accuracies", watched)
    model = ServedModel(run.uri, SERVING, "cpu")
    before = right(model)
    assert job.main([f"run_dir={run.uri}", f"task={task}", "erase=true"]) == 0
    model.follow()
    event = run.journal.last("forgotten")
    assert event
    tested = {item["task"]: item["test"] for item in event["dependents"]}
    assert {name: test["before"] for name, test in tested.items()} == pytest.approx(before)
    assert {name: test["after"] for name, test in tested.items()} == pytest.approx(right(model))
    assert all(test["images"] == len(test_images(world, n, 100)) for n, test in tested.items())
    old, new = measured
    assert {name for name in new if old[name] != new[name]} == losing, "two functions of each"
    assert task in old and task not in new
    assert "on its test split (24 images)" in capsys.readouterr().out


def test_mistakes_are_one_line(learned: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([f"run_dir={learned.uri}"], "task: must be given"),
        (["task=a"], "run_dir: say of which run"),
        ([f"run_dir={learned.uri}", "task=nobody"], "learned are: apples"),
        ([f"run_dir={learned.uri}", "task=a", "erase=1"], "expected true or false"),
        ([f"run_dir={learned.uri}", "task=a", "serving.url=http://x"], "ARCHIPELAGO_ADMIN_TOKEN"),
    ):
        assert job.main(words) == 2
        line = capsys.readouterr().err.strip()
        assert said in line and "\n" not in line
