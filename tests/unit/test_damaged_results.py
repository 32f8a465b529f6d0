"""Measurements, results and checkpoints that are damaged: one line with the file and the mend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.evaluation.records import read_records
from archipelago.pipeline.evaluation.report import build_report
from archipelago.pipeline.lifecycle.erase import _erase_calls
from archipelago.pipeline.records.evaluation import read_evaluation
from archipelago.pipeline.store import Folder, RunFolder
from archipelago.pipeline.tracking.snapshot import Snapshot
from archipelago.pipeline.training import checkpoints, launch
from tests.unit.test_damaged import DEEP, RUBBISH, damaged
from tests.unit.test_training_resume import _settings, _state
from tests.unit.tiny_run import (
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
    stage_spec,
)

NEEDED = ("tasks", "accuracy", "images", "identifier", "metrics", "own")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples", "boats"))


@pytest.fixture(scope="module")
def learned(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    open_run(world, run, run_settings(world, method={"name": "gda_per_task"}))
    learn_stream(make_learner(world, run, run_settings(world, method={"name": "gda_per_task"})))
    return run


@pytest.fixture
def run(learned: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(learned.uri, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def replaced(document: dict[str, Any], *path: str | int) -> list[bytes]:
    """The document with something else in one place of it."""
    found = []
    for value in (None, [[]], {"a": 1}, "text", 1.5, True, [], "1e999"):
        changed = json.loads(json.dumps(document))
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        if type(inner[path[-1]]) is not type(value):
            inner[path[-1]] = value
            found.append(json.dumps(changed).replace('"1e999"', "1e999").encode())
    return found


def test_a_damaged_measurement_is_named_and_measured_anew(world: World, run: RunFolder) -> None:
    name = "evaluation/001.json"
    whole = run.folder.read_json(name)
    kept = {key: whole[key] for key in NEEDED}
    bad = [*RUBBISH, *(d for d in damaged(kept) if b'"identifier": null' not in d)]
    bad += replaced(whole, "accuracy", "mtil_given")
    bad += replaced(whole, "accuracy", "mtil_given", 0)[1:]
    bad += replaced(whole, "identifier", "options") + replaced(whole, "identifier", "confusion")
    bad += replaced(whole, "identifier", "accuracy")[:4]
    bad += [
        json.dumps({**whole, "images": [1]}).encode(),
        json.dumps({**whole, "work": {}}).encode(),
    ]
    for data in bad:
        run.folder.write(name, data)
        for read in (read_records, build_report, Snapshot.take):
            with pytest.raises(IntegrityError, match=r"evaluation/001\.json .*run again") as caught:
                read(run)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 300, data[:80]
    learner = make_learner(world, run, run_settings(world, method={"name": "gda_per_task"}))
    with pytest.raises(IntegrityError, match=r"delete evaluation/001\.\* and run again"):
        learner.restore()
    for file in (Path(run.uri) / "evaluation").glob("001.*"):
        file.unlink()
    learn_stream(make_learner(world, run, run_settings(world, method={"name": "gda_per_task"})))
    again = run.folder.read_json(name)
    assert {k: again[k] for k in NEEDED} == kept


@pytest.mark.parametrize("name", ["evaluation/000.safetensors", "evaluation/zero-shot.safetensors"])
def test_damaged_rows_of_images_are_named(run: RunFolder, name: str) -> None:
    for data in [b"", b"{}", DEEP[:2000], run.folder.read(name)[:-1]]:
        run.folder.write(name, data)
        with pytest.raises(IntegrityError, match=rf"{name} .* delete evaluation/\S+\.\* and run"):
            build_report(run)


def test_damaged_figures_of_frozen_clip_are_named_and_measured_anew(
    world: World, run: RunFolder
) -> None:
    name = "evaluation/zero-shot.json"
    whole = run.folder.read_json(name)
    for data in [*RUBBISH, *damaged(whole), *replaced(whole, "settings", "mtil_given")]:
        run.folder.write(name, data)
        with pytest.raises(
            IntegrityError, match=r"zero-shot\.json .*delete evaluation/zero-shot\.\*"
        ):
            build_report(run)
    for file in (Path(run.uri) / "evaluation").glob("*.*"):
        file.unlink()
    learn_stream(make_learner(world, run, run_settings(world, method={"name": "gda_per_task"})))
    assert run.folder.read_json(name) == whole


def test_older_measurements_are_read() -> None:
    stored = Folder(Path(__file__).parents[1] / "data" / "run" / "run")
    assert all(read_evaluation(stored, stage) for stage in (None, 0, 1))


def test_a_damaged_report_is_named_to_tracking(run: RunFolder) -> None:
    run.folder.write_json("report.json", {"seconds": {"a": 1.0, "b": None}, "last": 3})
    assert Snapshot.take(run).report["last"] == 3
    for data in [*RUBBISH[:6], *RUBBISH[7:], b'{"seconds": 3}', b'{"last": "x"}']:
        run.folder.write("report.json", data)
        with pytest.raises(IntegrityError, match=r"report\.json is damaged: delete it"):
            Snapshot.take(run).report  # noqa: B018
    run.folder.delete("report.json")
    assert Snapshot.take(run).report == {}


def test_damaged_calls_are_named_and_forgotten_whole(run: RunFolder) -> None:
    call = {"began": 1.0, "kind": "k", "task": "apples", "asked": "?", "model": "m"}
    call |= {"seconds": 1.0, "answer": "a"}
    name = "identifier/traces/000-test.json"
    run.folder.write_json(name, [call, None])
    assert list(Snapshot.take(run).calls) == ["000-test/0"]
    for data in [*RUBBISH[:4], *RUBBISH[5:], b"[3]", *(b"[" + d + b"]" for d in damaged(call)[:1])]:
        run.folder.write(name, data)
        with pytest.raises(IntegrityError, match=r"000-test\.json is damaged: delete it"):
            Snapshot.take(run).calls  # noqa: B018
    run.folder.write(name, b"{")
    _erase_calls(run.folder, "apples")
    assert not run.folder.exists(name)


def test_what_is_damaged_ends_a_job_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_codes("job", "it failed")
    def main(arguments: Any) -> int:
        raise IntegrityError("evaluation/000.json is not JSON: delete it")

    assert main([]) == 2
    assert capsys.readouterr().err == "job: evaluation/000.json is not JSON: delete it\n"


def test_damaged_checkpoints_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6):
        place = tmp_path / "attempt-1" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        checkpoints.save(place, _state(step))
    folder = Folder(tmp_path)
    facts = tmp_path / "attempt-1" / "checkpoint-6" / checkpoints.FACTS
    whole = json.loads(facts.read_text())
    assert checkpoints.restore(checkpoints.newest(folder)).step == 6  # type: ignore[arg-type]
    bad = [
        *RUBBISH,
        *(d for d in damaged(whole) if b"e999" not in d),
        *replaced(whole, "groups", 0),
    ]
    bad = [d for d in bad if not sound(d, whole)]
    assert len(bad) > 40
    for data in bad:
        facts.write_bytes(data)
        caplog.clear()
        found = checkpoints.newest(folder)
        assert found is not None and checkpoints.restore(found).step == 3, data[:80]
        assert "checkpoint-6/state." in caplog.text, data[:80]
    facts.unlink()
    caplog.clear()
    assert checkpoints.restore(checkpoints.newest(folder)).step == 3  # type: ignore[arg-type]
    assert not caplog.text, "its writer was killed before it was complete"


def sound(data: bytes, whole: dict[str, Any]) -> bool:
    """Whether nothing is wrong: a figure that is another number, or no optimiser's."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    numbers = ("best_accuracy", "best_loss", "best_step")
    return isinstance(document, dict) and {
        k: v for k, v in document.items() if k not in numbers or type(v) not in (int, float)
    } == {k: v for k, v in whole.items() if k not in numbers}


def test_a_stage_goes_on_from_an_older_checkpoint(world: World, tmp_path: Path) -> None:
    settings = _settings(world)
    expected = launch.train_stage(stage_spec(world, tmp_path / "run", settings))
    for place in (tmp_path / "run" / "train").glob("*/*/*"):
        if place.name != "checkpoint-000003":
            (place / checkpoints.FACTS).write_text("[" * 100_000)
    again = launch.train_stage(stage_spec(world, tmp_path / "run", settings))
    assert {k: v.tolist() for k, v in again.group.items()} == {
        k: v.tolist() for k, v in expected.group.items()
    }
