"""`python jobs/sequence.py` as others script against it: files, exit codes, continuations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from archipelago.jobs import sequence
from archipelago.pipeline.config import load
from archipelago.pipeline.evaluation import report as reports
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import locate
from tests.running import BAD_ROWS, IN_PROCESS, Driver, arguments, events, group_hashes

pytestmark = pytest.mark.timeout(900)
ORDER = ("amber", "birch")
TRACKED = ("tracking=mlflow",)
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def finished(stream: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run on an own local Ray with one training worker; tests only read it."""
    place = tmp_path_factory.mktemp("finished")
    words = arguments(stream, place / "run", ORDER, *TRACKED)
    with Driver(place / "log", words) as driver:
        code = driver.code(800)  # a loaded machine starts Ray slowly
        left = driver.left()
    return SimpleNamespace(
        run=place / "run", words=words, code=code, output=(place / "log").read_text(), left=left
    )


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the job here, expects an exit code and one line on stderr, and returns that line."""

    def run(words: list[str], code: int = 2) -> str:
        assert sequence.main(words) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("sequence: "), lines
        return lines[0].removeprefix("sequence: ")

    return run


def read_report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def documents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("report.json", "matrix.parquet")}


def test_a_run_ends_well_and_calmly(finished: SimpleNamespace) -> None:
    assert finished.code == 0, finished.output
    assert finished.left == []
    for word in ("Traceback", "WARNING", "ERROR", " E ", "INFO", "Reporting training result"):
        assert word not in finished.output, finished.output
    for said in ("trge after stage 1 (birch): amber", "Transfer/Average/Last"):
        assert said in finished.output
    assert "stage 1 birch: step 12/12, loss" in finished.output, (
        "no line of the worker came through"
    )


def test_the_report_is_valid_and_everything_is_there(finished: SimpleNamespace) -> None:
    report = read_report(finished.run)
    schema = json.loads((Path(reports.__file__).parent / "report.schema.json").read_text())
    jsonschema.validate(report, schema)
    assert report["status"] == "complete" and report["tasks"] == list(ORDER)
    assert [len(row) for row in report["matrix"]] == [2, 2]
    assert report["matrix"][0][0] > report["zero_shot"][0], "nothing was learned"
    for name in ("run.json", "report.html", "matrix.parquet", "models/002.json"):
        assert (finished.run / name).is_file(), name
    assert len(list((finished.run / "plots").glob("*.png"))) >= 4
    kinds = [event["event"] for event in RunFolder.open(finished.run).journal.events()]
    stage = ["stage-started", "stage-trained", "stage-done", "evaluated"]
    assert kinds == ["run-started", "prepared", "prepared", *stage, *stage, "run-done"]
    assert not list((finished.run / "train").glob("*")), "checkpoints of done stages are left"


def test_rows_that_are_no_images_are_listed_not_fatal(finished: SimpleNamespace) -> None:
    rows = pq.read_table(finished.run / "quarantine-amber.parquet").to_pylist()
    expected = {"train": range(72, 75), "test": range(24, 25)}
    assert {split: len(bad) for split, bad in BAD_ROWS.items()} == {"train": 3, "test": 1}
    assert {(r["split"], r["row"]) for r in rows} == {
        (split, row) for split, bad in expected.items() for row in bad
    }
    assert all(row["task"] == "amber" and row["reason"] for row in rows)
    assert events(finished.run, "prepared")[0]["counts"] == {"train": 72, "test": 24}


def test_without_ray_the_same_groups_come_out(
    finished: SimpleNamespace, undisturbed: dict[str, str]
) -> None:
    """No data parallelism, so no other sums: one worker with as many threads is the same run."""
    assert group_hashes(finished.run) == undisturbed


def test_mlflow_holds_the_sequence_and_a_child_per_task(finished: SimpleNamespace) -> None:
    run = RunFolder.open(finished.run)
    client = MlflowClient(locate(run, load(finished.words).tracking).uri)
    (experiment,) = client.search_experiments(filter_string="name = 'archipelago'")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(r.info.run_name for r in children) == ["000-amber", "001-birch"]
    assert {r.info.status for r in found} == {"FINISHED"}
    assert parent.data.metrics["last"] == read_report(finished.run)["last"]


def test_again_is_a_no_op(finished: SimpleNamespace) -> None:
    """Where it computes is no part of what a run is: here without Ray."""
    before, hashes = documents(finished.run), group_hashes(finished.run)
    assert sequence.main([*finished.words, *IN_PROCESS]) == 0
    assert documents(finished.run) == before
    assert group_hashes(finished.run) == hashes
    for name in ("stage-started", "stage-trained", "evaluated"):
        assert len(events(finished.run, name)) == 2, "nothing is done again"


def test_a_longer_order_continues_even_without_mlflow(
    finished: SimpleNamespace, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    nowhere = ("tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1", "tracking.retries=0")
    words = arguments(stream, run, (*ORDER, "cedar"), *TRACKED, *nowhere, *IN_PROCESS)
    assert sequence.main(words) == 0
    report = read_report(run)
    assert report["status"] == "complete" and report["tasks"] == [*ORDER, "cedar"]
    hashes = group_hashes(run)
    assert list(hashes) == [*ORDER, "cedar"]
    assert hashes.items() >= group_hashes(finished.run).items()
    assert [event["stage"] for event in events(run, "stage-started")] == [0, 1, 2]
    assert [row[:2] for row in report["matrix"][:2]] == read_report(finished.run)["matrix"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.steps=13", "training.steps"),
        ("seed=1", "seed"),
        ("experts.rank=3", "experts.rank"),
        ("stream.order=[birch,amber]", "stream.order"),
    ],
)
def test_another_setting_is_refused_by_its_key(
    finished: SimpleNamespace, refused: Refused, override: str, line: str
) -> None:
    before = documents(finished.run)
    assert line in refused([*finished.words, *IN_PROCESS, override])
    assert documents(finished.run) == before


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.stepz=3", "training.stepz: unknown key; did you mean training.steps?"),
        ("stream.root=/nowhere/at/all", "/nowhere/at/all"),
        ("method=alchemy", "method=alchemy"),
        ("stream.order=[amber,dates]", "dates"),
        ("training.batch_size=9", "training.batch_size=9: does not divide by"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    stream: Path, tmp_path: Path, refused: Refused, override: str, line: str
) -> None:
    words = arguments(stream, tmp_path / "run", ORDER, "cluster.train.num_workers=2", override)
    assert line in refused(words)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_submitted_job_refuses_a_relative_run_dir(
    stream: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # set by Ray for drivers of jobs
    line = refused(arguments(stream, Path("runs/here"), ORDER))
    assert line.startswith("run_dir=runs/here: a submitted job")


def test_a_locked_run_is_refused_with_its_holder(
    stream: Path, tmp_path: Path, refused: Refused
) -> None:
    run = tmp_path / "run"
    with RunFolder(run).lock() as holder:
        line = refused(arguments(stream, run, ORDER, *IN_PROCESS), code=3)
    assert str(holder) in line and str(run) in line


def test_the_process_ends_with_the_exit_code(stream: Path, tmp_path: Path) -> None:
    nowhere = "cluster.address=127.0.0.1:9"
    with Driver(tmp_path / "log", arguments(stream, tmp_path / "run", ORDER, nowhere)) as driver:
        assert driver.code() == 2
        (line,) = driver.output().splitlines()
    assert line.startswith(f"sequence: {nowhere}: no Ray cluster answers there")
    assert not (tmp_path / "run" / "run.json").exists()
