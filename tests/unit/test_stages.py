"""Stages of several tasks: one group, a router and an embedding for each, and nobody starves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.report import build_report, write_report
from archipelago.pipeline.methods import Function, Neighbour, StageContext, build_method
from archipelago.pipeline.methods.trge import GroupAdapter, Trge
from archipelago.pipeline.model.watch import Watch, mutual_information
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.store import Folder, RunFolder, sha256
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.streams import open_stream, plan_stages
from archipelago.pipeline.training import checkpoints
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.objectives import Prompts
from archipelago.pipeline.training.spec import GROUP, Outcome
from archipelago.pipeline.training.stage import run_stage
from archipelago.pipeline.training.trunk import batch_rows
from tests.unit.tiny_clip import images, randomise, settings, tiny_backbone
from tests.unit.tiny_run import (
    Never,
    World,
    group_hashes,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
    stage_spec,
)

ASE = {"count": 6, "rank": 2, "active": 2, "shared_count": 1, "shared": "adaptive"}
CLASSES, TEMPLATES = ["cat", "dog", "red bus"], ["a photo of a {}."]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples", "boats", "cats"))


# -- plans ----------------------------------------------------------------------------------------


def test_plans_of_stages() -> None:
    tasks = ["a", "b", "c"]
    names = [stage.name for stage in plan_stages(tasks, [["a", "b"], ["c"]])]
    assert names == ["a+b", "c"]
    assert [s.tasks for s in plan_stages(tasks)] == [("a",), ("b",), ("c",)]
    assert [s.tasks for s in plan_stages(tasks, joint=True)] == [("a", "b", "c")]
    assert len(plan_stages(tasks, [["a", "b", "c"]], alone=True)) == 3
    assert len(plan_stages([f"task-{i:03d}" for i in range(99)], joint=True)[0].name) < 80
    for wrong in ([["a"]], [["b", "a"], ["c"]], [["a", "b", "c"], []], [["a", "b"], ["b", "c"]]):
        with pytest.raises(UserError, match=r"stream\.stages: holds \[.*name each task once"):
            plan_stages(tasks, wrong)
    with pytest.raises(UserError, match=r"two groups would be called 'a\+b'"):
        plan_stages(["a", "b", "a+b"], [["a", "b"], ["a+b"]])


def test_stages_choose_the_domains(world: World) -> None:
    root = str(world.backbone.parent / "stream")
    chosen = StreamSettings(reader="parquet", root=root, stages=[["cats"], ["apples"]])
    assert [domain.name for domain in open_stream(chosen, 0)] == ["cats", "apples"]
    with pytest.raises(UserError, match=r"stream\.stages: no domain 'dogs'"):
        open_stream(chosen.model_copy(update={"stages": [["dogs"]]}), 0)


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "tasks"), [(8, 3), (8, 8), (5, 2), (4, 1)])
def test_no_task_is_starved(size: int, tasks: int) -> None:
    counts = [7, 100, 3, 20, 5, 9, 11, 13]
    seen: list[list[tuple[int, int]]] = [[] for _ in range(tasks)]
    for step in range(40):
        parts = [
            batch_rows(0, 2, 1, counts[t], step, size, task=t, tasks=tasks) for t in range(tasks)
        ]
        assert sum(map(len, parts)) == size and min(map(len, parts)) >= size // tasks
        assert max(map(len, parts)) <= -(-size // tasks)
        for t, part in enumerate(parts):
            assert np.array_equal(
                part, batch_rows(0, 2, 1, counts[t], step, size, task=t, tasks=tasks)
            )
            seen[t] += [tuple(row) for row in part.tolist()]
    for t, rows in enumerate(seen):
        for start in range(0, len(rows) - counts[t] + 1, counts[t]):
            epoch = rows[start : start + counts[t]]
            assert {e for _, e in epoch} == {start // counts[t]}, "one epoch after another"
            assert sorted(p for p, _ in epoch) == list(range(counts[t])), "each row once"
    if tasks > 2:
        same = zip(seen[0], seen[2], strict=False)
        assert any(a[0] % 3 != b[0] for a, b in same), "tasks have orders of their own"


# -- mutual information ---------------------------------------------------------------------------


def test_mutual_information_is_the_papers_sum() -> None:
    sums = torch.rand(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for n, got in enumerate(mutual_information(sums)):
        p = sums[n] / sums[n].sum()
        expected = 0.0
        for t in range(3):
            for e in range(5):
                apart = float(p[t].sum() * p[:, e].sum())
                expected += float(p[t, e]) * np.log(float(p[t, e]) / apart + 1e-4)
        assert float(got) == pytest.approx(expected, abs=1e-12)
    apart = torch.eye(4)[None]
    assert float(mutual_information(apart)) == pytest.approx(np.log(4), abs=1e-3)
    assert float(mutual_information(torch.ones(1, 4, 8))) == pytest.approx(0.0, abs=1e-3)


def test_a_watch_sums_by_task_and_workers_add_up() -> None:
    """Two workers' sums, each with the other's as a constant: half the mean gradient is whole."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 3, 5, generator=generator, requires_grad=True)
    task = torch.tensor([0, 1, 0, 2, 1, 1, 0, 2])

    def watched(rows: slice) -> Watch:
        watch = Watch(tasks=3)
        watch.enter("image", task[rows])
        watch.note(logits[rows], logits[rows].softmax(dim=-1))
        return watch

    whole = watched(slice(0, 8))
    for t in range(3):
        expected = logits[task == t].softmax(dim=-1).sum(dim=(0, 1))
        assert torch.allclose(whole.probabilities()[0, t], expected)
    assert whole.loads()[1].tolist() == [[9.0, 9.0, 6.0]]
    (expected,) = torch.autograd.grad(mutual_information(whole.probabilities()).sum(), logits)
    parts = [watched(slice(0, 3)).probabilities(), watched(slice(3, 8)).probabilities()]
    total = sum(part.detach() for part in parts)
    mean = torch.zeros_like(logits)
    for part in parts:
        shared = part + (total - part.detach())
        (gradient,) = torch.autograd.grad(2 * mutual_information(shared).sum(), logits)
        mean += gradient / 2
    assert torch.allclose(mean, expected, atol=1e-7)


# -- one group, several tasks ---------------------------------------------------------------------


def _joint(name: str = "trge_ase", **experts: Any) -> tuple[Trge, GroupAdapter]:
    chosen = settings(method={"name": name}, experts=ASE | experts)
    method = build_method(chosen, None, tiny_backbone())
    assert isinstance(method, Trge)
    adapter = method.adapter(StageContext(0, "a+b+c", (), ("a", "b", "c")))
    return method, adapter


@torch.no_grad()
def test_a_fresh_group_of_several_tasks_is_frozen_clip() -> None:
    method, adapter = _joint()
    x = method.trunk(method.backbone.normalise(images(3)))
    text = Prompts(method.backbone, method.first_blocks[1], CLASSES, TEMPLATES)[0]
    for task in range(3):
        assert torch.allclose(adapter.image(x, task), method.frozen_features(x), atol=1e-6)
        frozen = method.backbone.encode_classes(CLASSES, TEMPLATES)
        assert torch.allclose(adapter.text(*text, task), frozen, atol=1e-6)
    shapes = {name: tuple(p.shape) for name, p in adapter.group.named_parameters()}
    assert shapes["image.W"] == (3, 2, 6, 48) and shapes["image.e"] == (3, 48)
    assert shapes["image.A"] == (2, 12, 48), "experts are shared by the tasks"
    assert (adapter.group.image.e == 0).all()  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("image", ["on", "off"])
def test_each_task_has_its_own_routers_and_answers_alike_installed(level: str, image: str) -> None:
    method, adapter = _joint(router=level, image=image)
    randomise(adapter.group, 3)
    x = method.trunk(method.backbone.normalise(images(6)))
    text = Prompts(method.backbone, method.first_blocks[1], CLASSES, TEMPLATES)[0]
    alone = [adapter.image(x, task) for task in range(3)]
    mixed = adapter.image(x, torch.tensor([0, 1, 2, 2, 1, 0]))
    for row, task in enumerate((0, 1, 2, 2, 1, 0)):
        assert torch.allclose(mixed[row], alone[task][row], atol=1e-5)
    assert (image == "off") == torch.equal(alone[0], alone[1])
    method.install("a+b+c", load(dump(adapter.export())))
    later = method.adapter(StageContext(1, "d", (Neighbour(0.3, "b"),)))
    randomise(later.group, 4)
    for parameter in later.influence.values():
        parameter.fill_(0.5)
    method.install("d", load(dump(later.export())))
    own = {task: Function(task, task) for task in "abcd"}
    for number, task in enumerate("abc"):
        assert torch.allclose(method.image_features(x, [own[task]] * 6), alone[number], atol=1e-6)
        u = method.class_features(CLASSES, TEMPLATES, own[task])
        assert torch.allclose(u, adapter.text(*text, number), atol=1e-5)
    assert torch.allclose(method.image_features(x, [own["d"]] * 6), later.image(x), atol=1e-6)
    functions = [own[task] for task in "bcdacb"]
    got = method.image_features(x, functions)
    for row, function in enumerate(functions):
        expected = method.image_features(x, [function] * 6)[row]
        assert torch.allclose(got[row], expected, atol=1e-5)
    assert torch.equal(method.class_features(CLASSES, TEMPLATES, None), _frozen(method))


def _frozen(method: Trge) -> Tensor:
    return method.class_features(CLASSES, TEMPLATES, None)


# -- training -------------------------------------------------------------------------------------


class Killed(Exception):
    """The end of a process."""


@pytest.mark.parametrize("weighting", ["equal", "uncertainty"])
def test_resumed_equals_uninterrupted(world: World, tmp_path: Path, weighting: str) -> None:
    """With router noise, three tasks of two sizes of batch share, and learned loss weights."""
    chosen = run_settings(
        world,
        method={"name": "ase"},
        experts=ASE | {"noise": 0.5, "information": 0.01},
        training={
            "steps": 4,
            "batch_size": 8,
            "warmup": 1,
            "learning_rate": 0.02,
            "weighting": weighting,
            "validate_every": 3,
            "checkpoint_every": 5,
            "cache_gib": 0.1,
        },
    )
    spec = stage_spec(world, tmp_path, chosen)
    spec = type(spec)(**{**spec.__dict__, "domains": tuple(world.domains)})
    assert spec.name == "apples+boats+cats" and type(spec).of(spec.plain()) == spec

    def learn(resume: TrainingState | None = None, dies_at: int = -1) -> Outcome:
        outcomes: list[Outcome] = []

        def save(metrics: dict, state: TrainingState | None, outcome: Outcome | None) -> None:
            if state is not None and state.step == dies_at:
                checkpoints.save(folder, state)
                raise Killed
            outcomes.extend([outcome] if outcome is not None else [])

        run_stage(spec, resume=resume, save=save)
        return outcomes[-1]

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    whole = learn()
    assert whole.facts["curve"][-1]["step"] == 12, "each task gets the steps it would have alone"
    with pytest.raises(Killed):
        learn(dies_at=5)
    torch.manual_seed(99)
    resumed = learn(checkpoints.restore(Folder(folder)))
    assert sha256(dump(resumed.group)) == sha256(dump(whole.group))
    assert set(whole.classes) == {d.name for d in world.domains}
    assert set(whole.facts["temperatures"]) == {d.name for d in world.domains}
    assert {0.0 < point["shared_gate"] < 1.0 for point in whole.facts["curve"]} == {True}
    experts = whole.facts["experts"]
    assert experts["routers"] == ["image 0", "image 1", "text 0", "text 1"]
    load_NTE = np.array(experts["load"])
    assert load_NTE.shape == (4, 3, 6)
    np.testing.assert_allclose(load_NTE.sum(axis=2), 1.0, atol=1e-3)
    np.testing.assert_allclose(
        load_NTE[..., -1].mean(axis=1)[2:], experts["shared_gate"][2:], atol=1e-3
    )
    assert whole.group["image.e"].abs().sum() > 0, "embeddings are learned"


def test_a_batch_smaller_than_the_tasks_is_refused(world: World, tmp_path: Path) -> None:
    chosen = run_settings(world, method={"name": "ase"}, training={"batch_size": 2})
    spec = stage_spec(world, tmp_path, chosen)
    spec = type(spec)(**{**spec.__dict__, "domains": tuple(world.domains)})
    with pytest.raises(UserError, match=r"training\.batch_size: 2 over 1 workers"):
        run_stage(spec)


# -- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Any]:
    """Apples and boats together, then cats, which borrows from one of them."""
    chosen = run_settings(
        world,
        method={"name": "trge_ase", "neighbours": {"max_distance": 2.0, "min_gain": -100.0}},
        experts=ASE,
        stream={"reader": "parquet", "stages": [["apples", "boats"], ["cats"]]},
    )
    run = RunFolder(tmp_path_factory.mktemp("runs") / "mixed")
    open_run(world, run, chosen)
    learn_stream(make_learner(world, run, chosen))
    return run, chosen


def test_a_run_of_stages(mixed: tuple[RunFolder, Any], world: World) -> None:
    run, chosen = mixed
    assert list(group_hashes(run)) == ["apples+boats", "cats"]
    first, later = (GroupRecord.read(run, ref) for ref in run.groups.list())
    assert [task.name for task in first.tasks] == ["apples", "boats"]
    for task in first.tasks:
        assert task.sums is not None and task.sums.total == 44 and task.probe is not None
        assert task.own_CF is not None and not np.allclose(task.own_CF, task.text_CF, atol=1e-3)
    assert {n["task"] for n in later.neighbours} <= {"apples", "boats"} and later.neighbours
    records = [run.folder.read_json(f"evaluation/{i:03d}.json") for i in range(2)]
    assert [r["task"] for r in records] == ["apples+boats", "cats"]
    assert records[0]["identifier"]["options"] == ["apples", "boats", "none"]
    given = [record["accuracy"]["mtil_given"] for record in records]
    assert given[0][:2] == given[1][:2], "the second stage left the first alone"
    assert np.mean(given[1]) > 60, "colours are learned"

    run.folder.delete("evaluation/001.json")
    again = learn_stream(make_learner(world, run, chosen, trainer=Never()))
    for key in ("accuracy", "identifier", "lambda"):
        assert again[-1][key] == records[1][key], "taken up as it was"


def test_the_report_of_a_run_of_stages(mixed: tuple[RunFolder, Any]) -> None:
    run, _ = mixed
    report = write_report(run)
    assert report["stages"] == [["apples", "boats"], ["cats"]] and report["status"] == "complete"
    matrix = np.array(report["matrix"])
    assert matrix.shape == (2, 3)
    assert report["columns"]["transfer"] == [None, None, pytest.approx(matrix[0, 2], abs=1e-3)]
    assert report["bwt"] == pytest.approx((matrix[1, :2] - matrix[0, :2]).mean(), abs=1e-3)
    accuracy = report["metrics"]["cats"]["accuracy"]
    assert accuracy == {
        "value": report["matrix_oracle"][1][2],
        "unit": "%",
        "lower_is_better": False,
    }
    assert report["baseline"] is None and report["delta_m"] is None
    assert [e["tasks"] for e in report["experts"]] == [["apples", "boats"], ["cats"]]
    assert report["experts"][0]["training"][-1]["information"] is not None
    page = run.folder.read("report.html").decode()
    assert "apples+boats" in page and "Experts" in page


def test_joint_training_against_single_tasks(world: World, tmp_path: Path) -> None:
    parts = {"experts": ASE, "stream": {"reader": "parquet"}}
    chosen = run_settings(world, method={"name": "ase"}, **parts)
    run = RunFolder(tmp_path / "run")
    open_run(world, run, chosen)
    (record,) = learn_stream(make_learner(world, run, chosen))
    assert record["task"] == "apples+boats+cats" and record["lambda"] == 0.0
    single = run_settings(world, method={"name": "lora_per_task"}, **parts)
    other = run.reference("lora_per_task")
    with run.lock():
        open_run(world, other, single, locked=True)
        learner = make_learner(world, other, single)
        for stage in learner.restore():
            learner.learn(stage)
            last = learner.evaluate(stage)
    report = build_report(run)
    ours, theirs = record["accuracy"]["mtil_given"], last["accuracy"]["mtil_given"]
    assert report["delta_m"] == pytest.approx(metrics.delta_m(ours, theirs, [False] * 3), abs=1e-3)
    assert report["baseline"]["method"] == "lora_per_task"
    assert report["setting"] == "all tasks learned at once, task identified"
    group = load(run.groups.read(run.groups.list()[0], GROUP))
    alone = load(other.groups.read(other.groups.list()[0], GROUP))
    assert group["image.A"].shape == alone["image.A"].shape, "groups of the same shape"


def test_a_run_goes_on_only_with_its_stages(mixed: tuple[RunFolder, Any], world: World) -> None:
    run, chosen = mixed
    other = chosen.model_copy(update={"stream": chosen.stream.model_copy(update={"stages": None})})
    with pytest.raises(UserError, match=r"learned \[\[apples, boats\], \[cats\]\] and is now"):
        open_run(world, run, other)
