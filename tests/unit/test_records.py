"""Records come back from disk as they were written; what is no record is refused by its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archipelago.pipeline.closedform import Sums
from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.records import GroupRecord, Probe, TaskRecord
from archipelago.pipeline.records.basis import keep_basis, read_basis
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.registry import Registry
from archipelago.pipeline.store import GroupRef, RunFolder, names
from archipelago.pipeline.store.documents import dumps
from tests.unit.tiny_closedform import EMBEDDING, WIDTH, basis, data, pictures, rows_of


def _task(name: str, **more: Any) -> TaskRecord:
    features, labels = data(name, [5, 4, 3])
    text = np.random.default_rng(0).normal(size=(3, EMBEDDING)).astype(np.float32)
    fields: dict[str, Any] = {
        "temperature": 1.25,
        "lambda_accuracy": [40.0, 41.5],
        "study": {"rows": [1, 2]},
        "description": {"text": "été"},
        "facts": {"group": {"kept": True}},
        "sums": Sums.of(features, labels, 3),
        "rows": rows_of(features, labels),
        "text_CF": text,
        "own_CF": 2 * text,
        "probe": Probe(pictures(features)[:2], labels[:2], np.log(np.full((2, 3), 1 / 3))),
    }
    digests, counts = {"train": "0" * 64, "test": "1" * 64}, {"train": 12, "test": 6}
    classes = ("x", "ÿ", "z z")
    return TaskRecord(name, classes, ("a {}", "the {}"), digests, counts, **(fields | more))


def _group(**more: Any) -> GroupRecord:
    fields: dict[str, Any] = {
        "tensors": {"image.A": torch.arange(6.0).reshape(2, 3)},
        "neighbours": ({"task": "n", "distance": 0.3, "gain": 1.0, "sha256": "f" * 64},),
        "parameters": 6,
        "parent": "e" * 64,
        "experts": {"load": [[0.5, 0.5]]},
        "remixed": None,
    }
    return GroupRecord(2, "a+b", "trge", (_task("a"), _task("b", own_CF=None)), **(fields | more))


def _same(a: Any, b: Any) -> bool:
    """Equal field by field, arrays to the bit; where it is stored does not count."""
    if dataclasses.is_dataclass(a):
        kept = [
            f.name for f in dataclasses.fields(a) if f.name not in ("ref", "weights", "derived")
        ]
        return type(a) is type(b) and all(_same(getattr(a, k), getattr(b, k)) for k in kept)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return a == b


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


NOTHING = dict.fromkeys(("probe", "sums", "rows", "text_CF", "own_CF"))
EDGES = _task("a", kind="edges", outputs={"images": np.ones(2)}, **NOTHING)


@pytest.mark.parametrize(
    "more",
    [{}, {"tensors": {}, "neighbours": (), "experts": None}, {"tasks": (EDGES,)}],
    ids=["trained", "closed form", "dense"],
)
def test_a_record_comes_back(run: RunFolder, more: dict[str, Any]) -> None:
    group = _group(**{k: v for k, v in more.items() if k != "tasks"})
    group = group.with_tasks(more.get("tasks", group.tasks))
    stored = group.write(run.groups)
    assert stored.ref is not None and stored.weights == run.groups.files(stored.ref)[names.GROUP]
    again = GroupRecord.read(run, stored.ref)
    assert _same(again, group) and again.ref == stored.ref and again.weights == stored.weights
    assert again.files() == group.files(), "equal records, equal bytes"


def test_equal_weights_have_equal_hashes_whatever_else_was_stored(run: RunFolder) -> None:
    one = _group().write(run.groups)
    other = _group(parameters=7).write(run.groups, beside=True)
    assert one.weights == other.weights and one.ref != other.ref
    changed = _group(tensors={"image.A": torch.ones(1)}).write(run.groups, beside=True)
    assert changed.weights != one.weights


def test_stored_halves_of_a_domain_add_up_to_the_whole(tmp_path: Path) -> None:
    """Growing a domain: sums are added, calibration rows merged; no image is needed again."""
    compact, labels = data("pets", (30, 20, 11))
    run = RunFolder(tmp_path / "run")

    def stored(number: int, rows: np.ndarray) -> TaskRecord:
        picked = rows_of(compact[rows], labels[rows], most=16)
        places = dataclasses.replace(picked, places=rows[picked.places])
        sums = Sums.of(compact[rows], labels[rows], 3)
        probe = Probe(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1, np.int64), np.zeros((1, 3)))
        task = TaskRecord(
            "pets",
            ("a", "b", "c"),
            ("a {}",),
            {},
            {},
            sums=sums,
            rows=places,
            probe=probe,
        )
        ref = GroupRecord(number, f"pets-{number}", "gda_per_task", (task,)).write(run.groups).ref
        assert ref is not None
        (found,) = GroupRecord.read(run, ref).tasks
        return found

    with run.lock():
        every = np.arange(len(labels))
        whole, left, right = (
            stored(number, rows) for number, rows in enumerate((every, every[:23], every[23:]))
        )
    assert left.sums and right.sums and whole.sums and left.rows and right.rows and whole.rows
    added, merged = left.sums.merged(right.sums), left.rows.merged(right.rows, 16)
    for name, array in whole.sums.arrays().items():
        np.testing.assert_allclose(added.arrays()[name], array, rtol=1e-9, atol=1e-9, err_msg=name)
    for name, array in whole.rows.arrays().items():
        assert np.array_equal(merged.arrays()[name], array), name


def test_what_identifies_is_counted(run: RunFolder) -> None:
    stored = _group().write(run.groups)
    assert stored.ref is not None
    card = read_card(run, stored.ref)
    task = _task("a")
    assert task.sums is not None and task.rows is not None
    assert task.numbers == task.sums.numbers() + task.rows.numbers() > 3 * WIDTH
    assert card["parameters"] == {"group": 6, "identifier": 2 * task.numbers}
    assert card["schema"] == names.SCHEMA and [t["name"] for t in card["tasks"]] == ["a", "b"]


def _altered(run: RunFolder, file: str, change: Any) -> GroupRef:
    """A group whose COMMIT is right and whose content is not."""
    files = _group().files()
    files[file] = change(files[file])
    return run.groups.write(2, "a+b", files)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("task.json", lambda data: b"{", r"002-a%2Bb/task\.json is not JSON"),
        ("task.json", lambda data: b"[]", r"task\.json is not of schema 2: learn the run anew"),
        ("task.json", lambda data: data.replace(b'"schema": 2', b'"schema": 1'), "not of schema 2"),
        ("task.json", lambda data: data.replace(b'"templates"', b'"temples"'), "templates"),
        ("identity.safetensors", lambda data: b"torn", "identity"),
        (
            "probe.safetensors",
            lambda data: _group(tensors={}).files()["group.safetensors"],
            "images",
        ),
    ],
)
def test_what_is_no_record_is_refused(run: RunFolder, file: str, change: Any, words: str) -> None:
    ref = _altered(run, file, change)
    with pytest.raises(IntegrityError, match=words) as caught:
        GroupRecord.read(run, ref)
    assert "\n" not in str(caught.value) and "002-a" in str(caught.value)


def test_the_basis_of_a_run_is_kept_and_checked(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"basis\.safetensors does not exist; start the run's comm"):
        read_basis(run)
    keep_basis(run, basis())
    assert read_basis(run).digest == basis().digest
    kinds = ("config", "kernels", "versions", "tracking")
    facts = {"schema": names.SCHEMA, "seed": 0, **{kind: {} for kind in kinds}}
    facts |= {"backbone": {"basis": basis().digest}, "stream": {"tasks": ["a"]}}
    run.folder.write("run.json", dumps(facts))
    assert read_basis(run).digest == basis().digest
    keep_basis(run, basis(seed=1))
    with pytest.raises(IntegrityError, match="is not the basis that the run was learned with"):
        read_basis(run)
    run.folder.write(names.BASIS, b"torn")
    with pytest.raises(IntegrityError, match=r"basis\.safetensors"):
        read_basis(run)


def test_a_name_stands_for_one_thing() -> None:
    registry: Registry[type] = Registry("archipelago.pipeline.dense.tasks", "thing.name")

    def thing(module: str) -> type:
        return type("Thing", (), {"__module__": module})

    first = registry.register("b")(thing("one"))
    registry.register("a")(thing("one"))
    again = registry.register("b")(thing("one"))  # its file was imported once more
    assert first is not again and registry.get("b") is again
    assert list(registry.known()) == ["a", "b"]
    with pytest.raises(ValueError, match=r"two things are called thing\.name=b"):
        registry.register("b")(thing("two"))
    with pytest.raises(UserError, match=r"^thing\.name=aa: unknown; choose one of a, b"):
        registry.get("aa")
