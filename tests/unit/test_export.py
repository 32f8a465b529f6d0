"""Exported folders: they open without their run, tell no secrets, and are replaced whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from archipelago.jobs import export
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.export import folder as exporting
from archipelago.pipeline.export.card import model_card
from archipelago.pipeline.export.folder import export_run
from archipelago.pipeline.export.swap import swap
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, copy_run, test_images


@pytest.fixture(scope="module")
def images(served_world: World) -> np.ndarray:
    return np.concatenate([test_images(served_world, task, 2) for task in TASKS])


def _spoil(run: RunFolder, **config: Any) -> None:
    """Change stored settings."""
    document = run.read()
    for key, value in config.items():
        section, _, name = key.partition("__")
        document["config"][section][name] = value
    run.folder.write_json("run.json", document)


def test_it_answers_as_the_run_did_and_the_run_may_go(
    served_run: RunFolder, images: np.ndarray, tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    wanted = LearnedModel.open(run.uri).answer(images, top_k=99)
    done = export_run(run.uri, tmp_path / "to")
    shutil.rmtree(tmp_path / "run")
    assert (done.tasks, done.manifest, done.deviation) == (TASKS, len(TASKS), None)
    model = LearnedModel.open(tmp_path / "to")
    assert tuple(model.tasks) == TASKS
    assert model.answer(images, top_k=99) == wanted, "to the bit"
    assert {file.name for file in (tmp_path / "to").iterdir()} == {
        "README.md",
        "config.json",
        "run.json",
        "basis.safetensors",
        "groups",
        "models",
    }
    assert not list(tmp_path.glob(".*.tmp"))
    config = json.loads((tmp_path / "to/config.json").read_bytes())
    assert [domain["name"] for domain in config["domains"]] == list(TASKS)
    written = {str(f.relative_to(done.folder)) for f in done.folder.rglob("*") if f.is_file()}
    assert set(config["files"]) | {"config.json"} == written


def test_a_backbone_of_another_place_is_given_and_checked(
    served_run: RunFolder, served_world: World, images: np.ndarray, tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    export_run(run.uri, tmp_path / "to")
    moved = f"local-dir:{tmp_path}/moved"
    shutil.copytree(served_world.backbone, tmp_path / "moved")
    target = RunFolder(tmp_path / "to")
    _spoil(target, backbone__name=f"local-dir:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="nowhere is no folder"):
        LearnedModel.open(tmp_path / "to")
    answers = LearnedModel.open(tmp_path / "to", backbone=moved).answer(images)
    assert answers == LearnedModel.open(run.uri).answer(images)
    with pytest.raises(UserError, match="has other weights"):
        LearnedModel.open(tmp_path / "to", backbone="clip-tiny")


def test_secrets_paths_and_what_was_forgotten_stay_behind(
    served_run: RunFolder, tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    gone = TASKS[1]
    forget_task(run.uri, gone, SERVING).finish(erase=True)
    _spoil(
        run,
        tracking__uri="http://me:hunter2@mlflow.example",
        stream__root="/home/me/private",
        identifier__endpoint="http://internal.example/v1",
        stream__options={"token": "hf_a1b2c3d4"},
        identifier__descriptions={gone: "a thing"},
        cluster__cache_dir="/home/me/cache",
    )
    write_report(run, pictures=False)
    done = export_run(run.uri, tmp_path / "to")
    assert gone not in done.tasks and len(done.tasks) == len(TASKS) - 1
    for file in (f for f in done.folder.rglob("*") if f.is_file()):
        data = file.read_bytes()
        for word in ("hunter2", "private", "internal.example", "hf_a1b2", "/home/me", gone):
            assert word.encode() not in data, f"{word} in {file.name}"
    assert "1 more domain, not in this model" in (done.folder / "README.md").read_text()


def test_the_card_is_read_by_the_hub_and_has_the_figures(
    served_run: RunFolder, tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    report = write_report(run, pictures=False)
    done = export_run(run.uri, tmp_path / "to")
    card = ModelCard.load(done.folder / "README.md")
    assert card.data.library_name == "archipelago"
    assert [domain["name"] for domain in card.data.archipelago["domains"]] == list(TASKS)
    digests = card.data.archipelago["domains"][0]["digests"]
    assert digests == dict(LearnedModel.open(run.uri).tasks[TASKS[0]].digests)
    sha256 = run.read()["backbone"]["sha256"]
    assert sha256 in card.text and 'backbone="local-dir:' in card.text
    found = {
        (result.dataset_name, result.metric_name): result.metric_value
        for result in card.data.eval_results
    }
    for column, task in enumerate(TASKS):
        assert found[task, "accuracy, domain given"] == report["matrix_oracle"][-1][column]
        assert found[task, "accuracy, domain recognised"] == report["matrix"][-1][column]
        shown = f"| {report['matrix_oracle'][-1][column]:.1f} | {report['matrix'][-1][column]:.1f}"
        assert f"| {task} |" in card.text and shown in card.text


def test_names_mark_nothing_up_in_the_card() -> None:
    odd = "a|b <script> [x](y) \n# big: {yes}"
    domain = {"name": odd, "classes": [odd, "b"], "digests": {"train": "d"}, "counts": {"train": 2}}
    config = {
        "method": "trge",
        "manifest": 1,
        "manifest_sha256": "m",
        "parameters": 5,
        "domains": [domain],
        "backbone": {"name": "clip-tiny", "sha256": "s", "parameters": 7, "image_size": 64},
    }
    text = model_card(config, {}, onnx=odd)
    assert ModelCard(text).data.archipelago["domains"][0]["name"] == odd
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<script\\>", "").split("```")[0]
    assert "\n# big" not in body.split("```")[0]
    assert "The run has measured nothing." in body and "part of the package" in body


def test_an_earlier_export_of_the_run_is_replaced_and_nothing_else(
    served_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, to = copy_run(served_run, tmp_path / "run"), tmp_path / "to"
    to.mkdir()
    export_run(run.uri, to)  # an empty folder is fine
    forget_task(run.uri, TASKS[-1], SERVING).finish(erase=False)

    def fail(*arguments: object) -> str:
        raise OSError("disk full")

    before = (to / "config.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "model_card", fail)
        with pytest.raises(OSError, match="disk full"):
            export_run(run.uri, to)
    assert (to / "config.json").read_bytes() == before and not list(tmp_path.glob(".*.tmp"))
    export_run(run.uri, to)
    assert tuple(LearnedModel.open(to).tasks) == TASKS[:-1]
    assert not (to / "groups" / f"{len(TASKS) - 1:03d}-{TASKS[-1]}").exists()
    (to / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds mine\.txt, which no export wrote"):
        export_run(run.uri, to)
    assert (to / "mine.txt").read_text() == "precious"
    (to / "mine.txt").unlink()
    document = json.loads((to / "config.json").read_bytes())
    (to / "config.json").write_text(json.dumps(document | {"run": "another"}))
    with pytest.raises(UserError, match=r"^to=.*no earlier export of this run"):
        export_run(run.uri, to)


def test_folders_are_exchanged_with_or_without_help_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archipelago.pipeline.export import swap as module

    for helped in (True, False):
        new, place = tmp_path / f"new{helped}", tmp_path / f"place{helped}"
        for folder, text in ((new, "new"), (place, "old")):
            folder.mkdir()
            (folder / "it").write_text(text)
        with monkeypatch.context() as patch:
            if not helped:
                patch.setattr(module, "_exchange", lambda one, other: False)
            swap(new, place)
        assert (place / "it").read_text() == "new" and (new / "it").read_text() == "old"
    assert module._exchange(new, place) in (True, False)


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert export.main(list(words)) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_mistakes_are_told_in_one_line(
    served_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, to = f"run_dir={served_run.uri}", f"to={tmp_path}/to"
    assert "to: must be given" in _refused(capsys, run)
    assert "onx: unknown here; did you mean onnx?" in _refused(capsys, run, to, "onx=cats")
    assert "to=s3://bucket/x: give a folder" in _refused(capsys, run, "to=s3://bucket/x")
    said = _refused(capsys, run, to, "onnx=birds")
    assert "onnx=birds: is not learned; learned are: apples, boats, cats, doors" in said
    assert "not a run folder" in _refused(capsys, f"run_dir={tmp_path}/none", to)
    (tmp_path / "file").write_text("")
    assert "is a file" in _refused(capsys, run, f"to={tmp_path}/file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/it").write_text("")
    assert "is not empty" in _refused(capsys, run, f"to={tmp_path}/full")
    empty = copy_run(served_run, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty/models")
    assert "has learned nothing yet" in _refused(capsys, f"run_dir={empty.uri}", to)
    assert not (tmp_path / "to").exists()


def test_dense_runs_are_refused(
    served_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.read_card

    def dense(*arguments: Any) -> dict[str, Any]:
        card = real(*arguments)
        card["tasks"][0]["kind"] = "segmentation"
        return card

    monkeypatch.setattr(exporting, "read_card", dense)
    with pytest.raises(UserError, match="apples, boats, cats, doors are dense tasks"):
        export_run(served_run.uri, tmp_path / "to")
