from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import default_of
from archipelago.pipeline.store import GroupRef, RunFolder, resume

SETTINGS: dict[str, Any] = {
    "run_dir": "/a",
    "seed": 0,
    "stream": {"reader": "parquet", "root": "/data", "order": ["a", "b"], "options": {}},
    "training": {"steps": 400, "crop": [0.6, 1.0]},
    "evaluation": {"batch_size": 128, "bootstrap": 1000, "references": []},
    "experts": {"count": 4},
    "cluster": {"train": {"num_workers": 1}},
    "tracking": {"uri": None},
}
FACTS: dict[str, Any] = {
    "backbone": {"name": "clip-tiny", "sha256": "f" * 64, "parameters": 7},
    "stream": {"tasks": ["a", "b"]},
    "kernels": {"attention": "math"},
    "versions": {"torch": "2"},
    "tracking": {"run_id": None},
}


def changed(document: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return document


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_first_opening_writes_everything(run: RunFolder) -> None:
    assert not run.exists()
    document = run.open_run(SETTINGS, FACTS)
    assert document == run.read() == {"schema": 2, "config": SETTINGS, "seed": 0, **FACTS}
    assert run.exists()


def test_same_again_leaves_the_file_alone(run: RunFolder) -> None:
    run.open_run(SETTINGS, FACTS)
    path = run.folder.local / "run.json"
    before = path.stat().st_mtime_ns
    run.open_run(changed(SETTINGS, "training.crop", (0.6, 1.0)), FACTS)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run_dir", "/b"),
        ("stream.root", None),
        ("stream.order", ["a", "b", "c"]),
        ("evaluation.batch_size", 1),
        ("evaluation.references", ["finetune"]),
        ("cluster.train.num_workers", 4),
        ("cluster.new", {"deep": 1}),
        ("tracking.uri", "http://x"),
        ("experts.preset", None),  # a setting younger than the run, at its default
        ("experts.noise", 0.0),
    ],
)
def test_keys_that_may_change_are_stored_anew(run: RunFolder, key: str, value: Any) -> None:
    run.open_run(SETTINGS, FACTS)
    settings = changed(SETTINGS, key, value)
    assert run.open_run(settings, FACTS)["config"] == settings == run.read()["config"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.steps", 300, "training.steps was 400 and is now 300"),
        ("seed", 1, "seed was 0 and is now 1"),
        ("stream.reader", "folder", "stream.reader was 'parquet' and is now 'folder'"),
        ("stream.options", {"k": 1}, "stream.options.k was 'unset' and is now 1"),
        ("evaluation.bootstrap", 5, "evaluation.bootstrap was 1000 and is now 5"),
        ("evaluation.batch_size_2", 5, "evaluation.batch_size_2 was 'unset' and is now 5"),
        ("training.crop", [0.6], r"training.crop was \[0.6, 1.0\] and is now \[0.6\]"),
        ("experts.noise", 0.1, "experts.noise was 'unset' and is now 0.1"),
        ("stream.rooted", True, "stream.rooted was 'unset' and is now True"),
    ],
)
def test_any_other_change_is_refused_by_name(
    run: RunFolder, key: str, value: Any, message: str
) -> None:
    before = run.open_run(SETTINGS, FACTS)
    with pytest.raises(UserError, match=message) as caught:
        run.open_run(changed(SETTINGS, key, value), FACTS)
    assert "\n" not in str(caught.value)
    assert run.read() == before


def test_a_key_that_is_new_counts_as_its_default(run: RunFolder) -> None:
    run.open_run(SETTINGS, FACTS)
    newer = changed(SETTINGS, "experts.rank", default_of("experts.rank"))
    assert run.open_run(newer, FACTS)["config"] == newer
    with pytest.raises(UserError, match=r"experts\.kind was 'unset' and is now 'bottleneck'"):
        run.open_run(changed(newer, "experts.kind", "bottleneck"), FACTS)


FLAT = {"name": "prototype", "width": 16, "driver": "openai", "samples": 24, "options": {"a": 1}}


def test_keys_of_other_identifiers_in_an_older_run_are_not_compared(run: RunFolder) -> None:
    run.open_run({**SETTINGS, "identifier": FLAT}, FACTS)
    now = {**SETTINGS, "identifier": {"name": "prototype", "width": 16}}
    assert run.open_run(now, FACTS)["config"] == now


def test_another_identifier_is_refused_by_its_name_alone(run: RunFolder) -> None:
    asking = {**SETTINGS, "identifier": {**FLAT, "name": "mllm"}}
    run.open_run(asking, FACTS)
    for section in ({"name": "prototype", "width": 16}, {**FLAT, "name": "cascade"}):
        with pytest.raises(UserError, match=r"^identifier.name was 'mllm' and is now '\w+': use"):
            run.open_run({**SETTINGS, "identifier": section}, FACTS)
    with pytest.raises(UserError, match=r"^identifier.driver was 'openai' and is now 'vllm': use"):
        run.open_run({**SETTINGS, "identifier": {**asking["identifier"], "driver": "vllm"}}, FACTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.crop", [0.8, 1.0]),
        ("identifier.samples", 24),
        ("evaluation.references", []),
        ("method.unseen.lambda_steps", 2.0),
        ("stream.reader", None),
        ("no.such.key", None),
    ],
)
def test_the_default_of_a_key(key: str, value: Any) -> None:
    assert default_of(key) == value


def test_tasks_append_and_never_change(run: RunFolder) -> None:
    run.open_run(SETTINGS, FACTS)
    longer = changed(FACTS, "stream.tasks", ["a", "b", "c"])
    assert run.open_run(SETTINGS, longer)["stream"]["tasks"] == ["a", "b", "c"]
    for tasks in (["a", "b"], ["a", "c", "b"], ["c", "a", "b", "c"], []):
        with pytest.raises(UserError, match=r"stream.order: this run learned \[a, b, c\]"):
            run.open_run(SETTINGS, changed(FACTS, "stream.tasks", tasks))


def test_backbone_is_fixed_kernels_stay_and_tracking_facts_are_kept(run: RunFolder) -> None:
    run.open_run(SETTINGS, FACTS)
    assert run.record_tracking(run_id="r1")["tracking"] == {"run_id": "r1"}
    moved = changed(changed(FACTS, "kernels.attention", "flash"), "versions.torch", "3")
    document = run.open_run(SETTINGS, moved)
    assert document["kernels"] == {"attention": "math"}
    assert document["versions"] == {"torch": "3"}
    assert document["tracking"] == {"run_id": "r1"}
    with pytest.raises(UserError, match=r"backbone\.sha256 was 'ffff"):
        run.open_run(SETTINGS, changed(FACTS, "backbone.sha256", "0"))


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"{", "is not JSON"), (b"[]", "schema None"), (b'{"schema": 1}', "schema 1, .* 2: learn")],
)
def test_an_unreadable_run_file_is_named(run: RunFolder, data: bytes, words: str) -> None:
    run.folder.write("run.json", data)
    with pytest.raises(UserError, match=rf"run\.json .*{words}"):
        run.open_run(SETTINGS, FACTS)


def test_opening_for_reading(run: RunFolder) -> None:
    with pytest.raises(UserError, match="does not exist"):
        RunFolder.open(run.uri)
    assert not run.folder.local.exists()
    run.open_run(SETTINGS, FACTS)
    ref = stage(run, 0, "a")
    with run.lock():
        reader = RunFolder.open(run.uri)
        assert reader.completed_stages() == {0: ref}
        for write in (
            lambda: reader.journal.append("stopped"),
            lambda: reader.groups.write(1, "b", {"group.safetensors": b""}),
            lambda: reader.groups.delete(ref),
            lambda: reader.models.publish([ref]),
            lambda: reader.record_tracking(run_id="x"),
        ):
            with pytest.raises(PermissionError, match="for reading"):
                write()


def stage(
    run: RunFolder,
    number: int,
    name: str,
    content: bytes = b"g",
    neighbours: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
) -> GroupRef:
    card = {
        "tasks": [{"name": task} for task in tasks or (name,)],
        "neighbours": [{"task": other} for other in neighbours],
    }
    files = {
        "group.safetensors": content + name.encode(),
        "task.json": json.dumps(card).encode(),
    }
    ref = run.groups.write(number, name, files, replace=True)
    run.journal.append("stage-done", stage=number, task=name, sha256=ref.sha256, manifest=1)
    return ref


def test_stages_are_done_in_any_order(run: RunFolder) -> None:
    assert run.completed_stages() == {}
    refs = {number: stage(run, number, name) for number, name in ((4, "e"), (0, "a"), (2, "c"))}
    assert run.completed_stages() == refs
    assert list(run.completed_stages()) == [0, 2, 4]


def test_a_group_without_its_event_is_not_done(run: RunFolder) -> None:
    run.groups.write(0, "a", {"group.safetensors": b"x"})
    run.journal.append("stage-trained", stage=0, task="a")
    assert run.completed_stages() == {}
    run.journal.append("stage-done", stage=0, task="a", sha256="0" * 64)
    assert run.completed_stages() == {}


def test_the_latest_event_counts(run: RunFolder) -> None:
    stage(run, 0, "a", b"old")
    new = stage(run, 0, "a", b"new")
    assert run.completed_stages() == {0: new}
    stage(run, 0, "a", b"old")
    assert run.completed_stages() != {0: new}


@pytest.mark.parametrize("file", ["group.safetensors", "task.json"])
def test_damage_costs_the_stage_and_those_that_borrow_from_it(run: RunFolder, file: str) -> None:
    stage(run, 0, "a")
    independent = stage(run, 1, "b")
    stage(run, 2, "c", neighbours=("b", "a"))
    stage(run, 3, "d", neighbours=("c",))
    assert list(run.completed_stages()) == [0, 1, 2, 3]
    (run.folder.local / "groups" / "000-a" / file).write_bytes(b"{}")
    assert run.completed_stages() == {1: independent}
    stage(run, 0, "a")
    assert list(run.completed_stages()) == [0, 1, 2, 3]


def test_neighbours_are_tasks_whatever_their_stage_is_called(run: RunFolder) -> None:
    stage(run, 0, "a+b", tasks=("a", "b"))
    stage(run, 1, "c", neighbours=("b",))
    assert list(run.completed_stages()) == [0, 1]
    stage(run, 2, "d", neighbours=("a+b",))
    assert list(run.completed_stages()) == [0, 1]


def test_references_are_runs_of_their_own(run: RunFolder) -> None:
    run.open_run(SETTINGS, FACTS)
    assert run.references() == {}
    for method in ("zero_shot", "finetune"):
        run.reference(method).open_run(SETTINGS, FACTS)
    (run.folder.local / "references" / "unfinished").mkdir()
    found = run.references()
    assert list(found) == ["finetune", "zero_shot"]
    ref = stage(found["finetune"], 0, "a")
    assert RunFolder.open(f"{run.uri}/references/finetune").completed_stages() == {0: ref}
    assert run.completed_stages() == {}
    reader = RunFolder.open(run.uri).references()["finetune"]
    with pytest.raises(PermissionError):
        reader.journal.append("stopped")


def test_flatten_names_leaves() -> None:
    assert dict(resume.flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]})) == {
        "a.b": 1,
        "d": [1, {"e": 2}],
    }
