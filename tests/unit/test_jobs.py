"""Jobs on a backbone that nobody prepared anything for: a random CLIP in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from archipelago.jobs import basis, identify
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.identifiers.basis import find_basis, load_basis
from archipelago.pipeline.settings import BackboneSettings
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import copy_run


def test_a_basis_is_made_for_any_backbone(
    served_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, images = tmp_path / "clip", served_world.backbone.parent / "stream" / TASKS[0]
    shutil.copytree(served_world.backbone, clip)
    chosen = BackboneSettings(name=f"local-dir:{clip}")
    assert find_basis(chosen) is None
    words = ["backbone=local-dir", f"backbone.name=local-dir:{clip}", "identifier.width=20"]
    assert basis.main([f"images={images}", f"to={clip / 'basis.safetensors'}", *words]) == 0
    path = find_basis(chosen)
    assert path == clip / "basis.safetensors"
    wanted = IdentifierSettings(name="prototype", width=20)
    found = load_basis(path, wanted)
    assert found is not None and found.width == 20 and found.images == 44 + 24
    again = tmp_path / "again.safetensors"
    assert basis.main([f"images={images}", f"to={again}", *words]) == 0
    assert again.read_bytes() == path.read_bytes(), "the same images, the same basis"
    assert load_basis(path, wanted.model_copy(update={"depths": "final"})) is None
    capsys.readouterr()
    for arguments, said in (
        ([], "images: must be given"),
        ([f"images={tmp_path}", "to=x"], "no parquet files there"),
    ):
        assert basis.main(arguments) == 2
        assert said in capsys.readouterr().err


def test_identifiers_are_compared_on_a_run_of_any_backbone(
    served_run: RunFolder, served_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    document = run.read()
    document["config"]["stream"]["root"] = str(served_world.backbone.parent / "stream")
    run.folder.write_json("run.json", document)
    words = [f"run_dir={run.uri}", "split=test", "only=[prototype,oracle]", "identifier.samples=1"]
    assert identify.main(words) == 0
    assert "Own test images to own task" in capsys.readouterr().out
    rows = {r["title"]: r for r in json.loads(run.folder.read("identify/test.json"))["rows"]}
    assert list(rows) == ["oracle", "prototype"]
    measured = run.folder.read_json(f"evaluation/{len(TASKS) - 1:03d}.json")["identifier"]
    assert rows["prototype"]["closed"] == pytest.approx(measured["accuracy"], abs=0.1)
    assert rows["oracle"]["closed"] == 100.0 and set(rows["oracle"]["per_task"]) == set(TASKS)
    assert rows["oracle"]["last"] >= rows["prototype"]["last"] > 25.0
    for mistaken, said in (
        (["split=test"], "run_dir: must be given"),
        ([f"run_dir={run.uri}", "split=train"], "split=train: expected 'test'"),
        ([f"run_dir={run.uri}", "training.steps=1"], "training.steps: unknown here"),
    ):
        assert identify.main(mistaken) == 2
        assert said in capsys.readouterr().err
