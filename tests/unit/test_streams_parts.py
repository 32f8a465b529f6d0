"""Few images a class and classes in steps: the same for a seed, decoded once, refused in words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.store import resume
from archipelago.pipeline.streams import (
    Domain,
    ImageTable,
    PreparedDomain,
    execution,
    open_stream,
    prepare,
)
from archipelago.pipeline.streams.rehearsed import rehearsed
from archipelago.pipeline.streams.shards import ShardJob
from tests.helpers import parquet_domain

CLASSES, TRAIN, TEST = 10, 7, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    for name in ("many", "few"):
        parquet_domain(folder, name, CLASSES if name == "many" else 3, TRAIN, TEST)
    return folder


def opened(
    root: Path, seed: int = 0, order: Any = ("many",), stages: Any = None, **options: Any
) -> list[Domain]:
    chosen = StreamSettings(
        reader="parquet",
        root=str(root),
        order=order and list(order),
        stages=stages,
        options=options,
    )
    return open_stream(chosen, seed)


def prepared(domains: list[Domain], base: Path) -> list[PreparedDomain]:
    return prepare(
        domains,
        size=8,
        run=str(base / "run"),
        cache_dir=str(base / "cache"),
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )


def table(domain: PreparedDomain, split: str = "train") -> ImageTable:
    return ImageTable.open(domain.tables[split])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders into which shards are written from now on."""
    found: list[str] = []
    original = execution.write_shard

    def write(job: ShardJob) -> Any:
        found.append(job.folder)
        return original(job)

    monkeypatch.setattr(execution, "write_shard", write)
    return found


# -- steps ----------------------------------------------------------------------------------------


def test_steps_are_tasks_over_one_decoded_domain(
    root: Path, tmp_path: Path, decoded: list[str]
) -> None:
    (whole,) = prepared(opened(root), tmp_path)
    domains = opened(root, steps=3)
    steps = prepared(domains, tmp_path)
    assert len(decoded) == 2, "the two splits of the domain, once for all"
    assert [step.name for step in steps] == ["many-01", "many-02", "many-03"]
    assert [len(step.classes) for step in steps] == [4, 3, 3]
    assert sorted(name for step in steps for name in step.classes) == sorted(whole.classes)
    for split, each in (("train", TRAIN), ("test", TEST)):
        full, rows = table(whole, split), []
        for step in steps:
            found = table(step, split)
            assert len(found) == step.counts[split] == each * len(step.classes)
            assert found.digest == step.digests[split] != whole.digests[split]
            at = {int(row): place for place, row in enumerate(full.rows)}
            places = np.array([at[int(row)] for row in found.rows])
            order = np.random.default_rng(0).permutation(len(found))
            assert np.array_equal(found.images(order), full.images(places[order]))
            names = [whole.classes[label] for label in full.labels[places]]
            assert [step.classes[label] for label in found.labels] == names
            rows += found.rows.tolist()
        assert sorted(rows) == sorted(full.rows.tolist()), "each image is in one step"
    assert len({digest for step in steps for digest in step.digests.values()}) == 6
    again = pickle.loads(pickle.dumps(table(steps[1])))
    assert np.array_equal(again.labels, table(steps[1]).labels)
    with pytest.raises(IndexError):
        again.images(np.array([len(again)]))


def test_a_step_is_the_same_whatever_else(root: Path, tmp_path: Path) -> None:
    steps = prepared(opened(root, steps=3), tmp_path / "a")
    assert prepared(opened(root, steps=3), tmp_path / "b")[1].digests == steps[1].digests
    few = opened(root, steps=3, shots=2)
    assert [d.classes for d in few] == [s.classes for s in steps]
    names = ["many-03", "many-01"]
    assert [d.name for d in opened(root, steps=3, order=names)] == names
    stages = [["many-02"], ["many-03", "many-01"]]
    ordered = opened(root, steps=3, order=None, stages=stages)
    assert [d.name for d in ordered] == ["many-02", "many-03", "many-01"]
    backwards = prepared(opened(root, steps=3, order=["many-02", "many-01"]), tmp_path / "c")
    assert backwards[0].digests == steps[1].digests and backwards[0].classes == steps[1].classes
    other = opened(root, seed=1, steps=3)
    assert [d.classes for d in other] != [s.classes for s in steps]
    assert [d.name for d in opened(root, steps=10)][-2:] == ["many-09", "many-10"]
    (only,) = opened(root, steps=1)
    assert only.name == "many-01" and len(only.classes) == CLASSES


def test_where_one_domain_is_there_it_need_not_be_named(tmp_path: Path) -> None:
    parquet_domain(tmp_path, "alone")
    assert [d.name for d in opened(tmp_path, order=None, steps=2)] == ["alone-01", "alone-02"]


# -- shots ----------------------------------------------------------------------------------------


def test_shots_are_counted_seeded_and_of_training_alone(root: Path, tmp_path: Path) -> None:
    both = ["many", "few"]
    whole = prepared(opened(root, order=both), tmp_path)
    shots = prepared(opened(root, order=both, shots=2), tmp_path)
    for full, part in zip(whole, shots, strict=True):
        assert part.tables["test"] == full.tables["test"], "the test split stays whole"
        assert part.digests["test"] == full.digests["test"] and part.classes == full.classes
        assert part.digests["train"] != full.digests["train"]
        assert np.bincount(table(part).labels).tolist() == [2] * len(full.classes)
        assert part.counts["train"] == 2 * len(full.classes)
    again = prepared(opened(root, shots=2), tmp_path / "again")[0]
    assert again.digests == shots[0].digests, "whatever other domains there are"
    rows = [
        set(table(prepared(opened(root, seed, shots=k), tmp_path)[0]).rows.tolist())
        for seed, k in ((0, 2), (1, 2), (0, 3))
    ]
    assert rows[0] != rows[1] and rows[0] < rows[2]
    (all_of_them,) = prepared(opened(root, shots=TRAIN), tmp_path)
    assert all_of_them.tables == whole[0].tables and all_of_them.digests == whole[0].digests


def test_both_options_take_the_same_images(root: Path, tmp_path: Path) -> None:
    (shots,) = prepared(opened(root, shots=2), tmp_path)
    steps = prepared(opened(root, shots=2, steps=4), tmp_path)
    found = sorted(row for step in steps for row in table(step).rows.tolist())
    assert found == sorted(table(shots).rows.tolist())
    assert [table(step, "test").labels.size for step in steps] == [3 * TEST] * 2 + [2 * TEST] * 2


def test_an_image_that_cannot_be_used_changes_its_class_alone(tmp_path: Path) -> None:
    file = parquet_domain(tmp_path / "data", "many", 4, TRAIN, TEST) / "train.parquet"
    (before,) = prepared(opened(tmp_path / "data", shots=2), tmp_path / "a")
    chosen = table(before)
    lost = int(chosen.rows[chosen.labels == 1][0])
    rows = pq.read_table(file).to_pylist()
    rows[lost]["image"]["bytes"] = b"broken"
    schema = pq.read_schema(file)
    pq.write_table(type(pq.read_table(file)).from_pylist(rows, schema), file)
    steps = prepared(opened(tmp_path / "data", shots=2, steps=2), tmp_path / "b")
    assert [step.quarantined for step in steps] == [1, 0], "told of once"
    assert [path.name for path in (tmp_path / "b/run").iterdir()] == ["quarantine-many-01.parquet"]
    (after,) = prepared(opened(tmp_path / "data", shots=2), tmp_path / "b")
    now = table(after)
    for label in range(4):
        same = set(now.rows[now.labels == label]) == set(chosen.rows[chosen.labels == label])
        assert same is (label != 1) and (now.labels == label).sum() == 2


# -- what is not there, or damaged ----------------------------------------------------------------


def test_a_step_without_usable_images_is_refused(tmp_path: Path) -> None:
    file = parquet_domain(tmp_path / "data", "many", 4, TRAIN, TEST) / "test.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row["image"]["bytes"] = b"broken" if row["label"] == 0 else row["image"]["bytes"]
    pq.write_table(type(pq.read_table(file)).from_pylist(rows, pq.read_schema(file)), file)
    with pytest.raises(UserError, match=r"^many-0\d: no row of its test split is usable: "):
        prepared(opened(tmp_path / "data", steps=4), tmp_path)


def test_a_selection_is_what_its_name_says(root: Path, tmp_path: Path) -> None:
    (part,) = prepared(opened(root, shots=2), tmp_path)
    path = Path(part.tables["train"])
    path.write_bytes(path.read_bytes().replace(b"[0, 1,", b"[1, 1,"))
    with pytest.raises(IntegrityError, match="damaged selection"):
        table(part)
    path.unlink()
    with pytest.raises(UserError, match="run again to prepare it"):
        table(part)
    assert len(table(prepared(opened(root, shots=2), tmp_path)[0])) == 2 * CLASSES


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": 0}, "stream.options.shots: 0 is no number of training images of each class; "),
        ({"shots": "five"}, "stream.options.shots: 'five' is no number of training images"),
        ({"shots": True}, "stream.options.shots: True is no number of training images"),
        ({"steps": 0}, "stream.options.steps: 0 is no number of steps of classes; give 1 or more"),
        ({"steps": 2.0}, "stream.options.steps: 2.0 is no number of steps of classes"),
        ({"steps": 11}, "stream.options.steps=11: 'many' has 10 classes; a step needs one or more"),
        (
            {"shot": 1},
            "stream.options.shot: unknown option; known are group, group_pattern, image,",
        ),
        (
            {"steps": 2, "order": ["many", "few"]},
            "stream.options.steps=2: cuts one domain into tasks, and stream.order holds "
            "[many, few]; give the domain alone, as stream.order=[many]",
        ),
        ({"steps": 2, "order": None}, "stream.order holds [few, many]; give the domain alone"),
        ({"steps": 2, "order": ["many", "many-01"]}, "cuts one domain into tasks"),
        ({"steps": 2, "order": ["many-01", "few-01"]}, "as stream.order=[many]"),
        ({"steps": 2, "order": ["many-03"]}, "stream.order: no domain 'many-03'"),
        ({"steps": 2, "order": ["many-01", "many-01"]}, "'many-01' is listed twice"),
        ({"order": ["many-01"]}, "stream.order: no domain 'many-01'"),
    ],
)
def test_senseless_parts_are_refused(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["shots", "steps"])
def test_dense_tasks_have_no_parts(key: str) -> None:
    chosen = StreamSettings(reader="scenes", order=["edges"], options={key: 2})
    with pytest.raises(UserError, match=rf"stream\.options\.{key}: 'edges' is a dense task"):
        open_stream(chosen, 0, dense=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"shots": 5}, {"shots": 6}, r"stream\.options\.shots was 5 and is now 6"),
        ({}, {"shots": 6}, r"stream\.options\.shots was 'unset' and is now 6"),
        ({"steps": 5}, {"steps": 10}, r"stream\.options\.steps was 5 and is now 10"),
        ({"steps": 10}, {"steps": 5}, r"stream\.options\.steps was 10 and is now 5"),
        ({"steps": None}, {"steps": 5}, r"stream\.options\.steps was None and is now 5"),
        ({}, {"group_pattern": "train"}, r"stream\.options\.group_pattern was 'unset' and is now"),
    ],
)
def test_a_run_keeps_its_parts(
    root: Path, old: dict[str, Any], new: dict[str, Any], words: str
) -> None:
    def document(options: dict[str, Any]) -> dict[str, Any]:
        tasks = [domain.name for domain in opened(root, **options)]
        return {
            "config": {"stream": {"order": ["many"], "options": options}},
            "backbone": {},
            "stream": {"tasks": tasks},
            "versions": {},
            "tracking": {},
            "kernels": {},
        }

    with pytest.raises(UserError, match=words):
        resume.merge(document(old), document(new))
    unset = resume.merge(document({}), document({"shots": None, "steps": None, "group": None}))
    assert unset["stream"]["tasks"] == ["many"], "runs of before there were parts go on"


@pytest.mark.parametrize("options", [{}, {"shots": 5}])
def test_a_rehearsal_is_judged_by_training_images(
    root: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    (domain,) = prepared(opened(root, **options), tmp_path)
    again = rehearsed(domain, 0.25, seed=0)
    whole, train, test = table(domain), table(again), table(again, "test")
    assert again.counts == {"train": len(train), "test": len(test)}
    assert not set(train.rows) & set(test.rows)
    assert sorted([*train.rows, *test.rows]) == whole.rows.tolist()
    assert set(test.labels) == set(train.labels) == set(range(CLASSES))
    labels = dict(zip(whole.rows.tolist(), whole.labels.tolist(), strict=True))
    for part in (train, test):
        assert [labels[row] for row in part.rows.tolist()] == part.labels.tolist()
        assert np.array_equal(
            part.images(np.arange(len(part))),
            whole.images(np.searchsorted(whole.rows, part.rows)),
        )
    assert again.digests["test"] not in domain.digests.values()
    assert rehearsed(domain, 0.25, seed=0) == again != rehearsed(domain, 0.25, seed=1)
