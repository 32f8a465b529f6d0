"""Dense tasks learned together with one group: heads are stored with it and judged by their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archipelago.actors.arguments import without_words
from archipelago.actors.bringup import bring_up
from archipelago.pipeline.errors import Refused, UserError
from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.serving.model import check_served
from archipelago.pipeline.settings import ClusterSettings, Settings, StreamSettings
from archipelago.pipeline.store import Folder, RunFolder, sha256
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.streams import open_stream, prepare
from archipelago.pipeline.training import checkpoints
from archipelago.pipeline.training.data import attach_heads, load_data
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.objectives import predict_all
from archipelago.pipeline.training.spec import GROUP, Outcome
from archipelago.pipeline.training.stage import build, run_stage
from tests.unit.tiny_clip import save_local
from tests.unit.tiny_run import Never, World, learn_stream, make_learner, run_settings, stage_spec

SCENES = {"reader": "scenes", "options": {"train": 20, "test": 6}}
ASE = {"count": 6, "rank": 2, "active": 2, "shared_count": 1, "shared": "adaptive"}
OWN = {
    "edges": ("odsF", "%", False),
    "normals": ("mean", "degrees", True),
    "parts": ("mIoU", "%", False),
    "saliency": ("mIoU", "%", False),
    "semseg": ("mIoU", "%", False),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("scenes")
    domains = open_stream(StreamSettings(**SCENES), 0, dense=True)
    prepared = prepare(
        domains,
        size=32,
        run=str(root),
        cache_dir=str(root / "cache"),
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=1_000_000,
        use_ray=False,
    )
    save_local(root / "clip")
    return World(prepared, root / "clip")


def _settings(world: World, method: str = "ase", **training: Any) -> Settings:
    base = {
        "steps": 2,
        "batch_size": 10,
        "warmup": 1,
        "learning_rate": 0.005,
        "views": 2,
        "flip": True,
        "validate_every": 4,
        "checkpoint_every": 5,
        "cache_gib": 0.1,
        "head_channels": 8,
    }
    return run_settings(
        world, method={"name": method}, experts=ASE, stream=SCENES, training=base | training
    )


def _open(world: World, run: RunFolder, chosen: Settings) -> None:
    tasks = [domain.name for domain in world.domains]
    stages = [list(stage.tasks) for stage in stages_of(chosen, tasks)]
    facts = {
        "backbone": {"name": "tiny", "sha256": "f" * 64, "parameters": 7},
        "stream": {"tasks": tasks, "stages": stages},
        "versions": {"torch": "2"},
    }
    run.open_run(chosen.model_dump(mode="json"), facts)


def _learn(world: World, run: RunFolder, chosen: Settings) -> list[dict[str, Any]]:
    with run.lock():
        _open(world, run, chosen)
    return learn_stream(make_learner(world, run, chosen))


def test_five_tasks_together_and_each_alone(world: World, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    chosen = _settings(world)
    (record,) = _learn(world, run, chosen)
    assert list(record["metrics"]) == sorted(OWN)
    for task, figures in record["metrics"].items():
        name = record["own"][task]
        score = figures[name]
        assert (name, score["unit"], score["lower_is_better"]) == OWN[task]
        assert score["value"] is None or np.isfinite(score["value"])
    assert record["identifier"] is None and record["accuracy"]["mtil_given"] == [None] * 5
    group = load(run.groups.read(run.groups.list()[0], GROUP))
    heads = {key.split("/")[1] for key in group if key.startswith("head/")}
    assert heads == set(OWN), "one head a task"
    assert group["image.W"].shape[0] == group["image.e"].shape[0] == 5, "one router, one embedding"
    assert group["image.B"].abs().sum() > 0
    assert group["text.B"].abs().sum() == 0, "no task reads captions"
    card = json.loads(run.groups.read(run.groups.list()[0], "task.json"))
    assert card["parameters"]["group"] == sum(
        t.numel() for t in group.values() if t.is_floating_point()
    )
    with pytest.raises(Refused, match=r"dense tasks \(edges, normals, .* classes are served"):
        check_served(
            GroupRecord.read(run, run.groups.list()[0]),
            load_backbone(chosen.backbone, "cpu", Kernels()),
        )
    with pytest.raises(
        UserError, match=r"run_dir=.*: group 'edges\+.* was learned for dense tasks"
    ):
        bring_up(chosen.model_copy(update={"run_dir": run.uri}))
    other = run.reference("lora_per_task")
    records = _learn_reference(world, run, other)
    assert [list(r["metrics"]) for r in records] == [sorted(OWN)[: i + 1] for i in range(5)]
    report = write_report(run)
    own = report["own"]
    assert own == {task: facts[0] for task, facts in OWN.items()}
    ours = [report["metrics"][t][own[t]] for t in report["tasks"]]
    theirs = [report["baseline"]["metrics"][t][own[t]] for t in report["tasks"]]
    assert [m["value"] for m in theirs] == pytest.approx(
        [records[-1]["metrics"][t][own[t]]["value"] for t in report["tasks"]], abs=1e-3
    )
    assert report["delta_m"] == pytest.approx(
        metrics.delta_m(
            [m["value"] for m in ours],
            [m["value"] for m in theirs],
            [m["lower_is_better"] for m in ours],
        ),
        abs=0.01,
    )
    assert "Together or alone" in run.folder.read("report.html").decode()
    never = _measured_again(world, run)
    assert never["metrics"] == record["metrics"], "heads come back with their group"


def _learn_reference(world: World, run: RunFolder, other: RunFolder) -> list[dict[str, Any]]:
    with run.lock():
        single = _settings(world, "lora_per_task")
        _open(world, other, single)
        learner = make_learner(world, other, single)
        records = []
        for stage in learner.restore():
            learner.learn(stage)
            records.append(learner.evaluate(stage))
    return records


def _measured_again(world: World, run: RunFolder) -> dict[str, Any]:
    run.folder.delete("evaluation/000.json")
    return learn_stream(make_learner(world, run, _settings(world), trainer=Never()))[0]


class Killed(Exception):
    """The end of a process."""


def test_resumed_equals_uninterrupted(world: World, tmp_path: Path) -> None:
    spec = stage_spec(world, tmp_path, _settings(world))
    spec = type(spec)(**{**spec.__dict__, "domains": tuple(world.domains)})
    folder = tmp_path / "checkpoint"
    folder.mkdir()

    def learn(resume: TrainingState | None = None, dies_at: int = -1) -> str:
        outcomes: list[Outcome] = []

        def save(metrics: dict, state: TrainingState | None, outcome: Outcome | None) -> None:
            if state is not None and state.step == dies_at:
                checkpoints.save(folder, state)
                raise Killed
            outcomes.extend([outcome] if outcome is not None else [])

        run_stage(spec, resume=resume, save=save)
        return sha256(dump(outcomes[-1].group))

    whole = learn()
    with pytest.raises(Killed):
        learn(dies_at=5)
    torch.manual_seed(99)
    assert learn(checkpoints.restore(Folder(folder))) == whole


def test_methods_for_images_refuse_dense_tasks() -> None:
    with pytest.raises(UserError, match=r"is a dense task .* take method=ase"):
        open_stream(StreamSettings(**SCENES), 0, dense=False)


def test_a_method_that_learns_each_domain_by_itself_refuses_stages_of_several(
    world: World,
) -> None:
    chosen = _settings(world, "archipelago")
    stream = chosen.stream.model_copy(update={"stages": [["a", "b"], ["c"]]})
    said = r"archipelago .* \[a, b\] .* take method=trge or method=ase"
    with pytest.raises(UserError, match=said):
        stages_of(chosen.model_copy(update={"stream": stream}), ["a", "b", "c"])


def test_everything_that_trains_gets_a_gradient(world: World, tmp_path: Path) -> None:
    """Data-parallel workers wait for each trained parameter: nobody reads class names here."""
    spec = stage_spec(world, tmp_path, _settings(world))
    method, adapter = build(spec)
    assert adapter.group.text is not None  # the settings have text experts
    tasks = load_data(spec, method, 0, 1)
    attach_heads(adapter, tasks)
    chosen = np.array([[0, 0], [1, 0]])
    inputs = [task.inputs(chosen).float() for task in tasks]
    outputs = predict_all(adapter, tasks, inputs, 0)
    pairs = zip(tasks, outputs, strict=True)
    torch.stack([task.loss(output, chosen, 0.0) for task, output in pairs]).sum().backward()
    idle = [n for n, p in adapter.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == [] and any(p.requires_grad for p in adapter.group.parameters())


def test_streams_of_dense_tasks_have_no_text_experts(world: World) -> None:
    settings = _settings(world)
    scenes = open_stream(StreamSettings(**SCENES), 0, dense=True)
    assert settings.experts.text == "on"
    assert without_words(settings, scenes).experts.text == "off"
    digits = open_stream(StreamSettings(reader="rendered", order=["digits"]), 0)
    assert without_words(settings, [*scenes, *digits]) is settings
    blind = settings.experts.model_copy(update={"image": "off"})
    with pytest.raises(UserError, match=r"experts\.image: off leaves nothing to learn for 'edges'"):
        without_words(settings.model_copy(update={"experts": blind}), scenes)
