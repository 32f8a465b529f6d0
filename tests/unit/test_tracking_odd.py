"""MLflow in odd places: names with special characters, deleted experiments, locked databases."""

from __future__ import annotations

import logging
import shlex
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import Tracker, client
from archipelago.pipeline.tracking.client import connected
from archipelago.pipeline.tracking.location import locate
from archipelago.pipeline.tracking.sync import _experiment, sync
from tests.running import ROOT
from tests.unit.synthetic_run import write_run
from tests.unit.tiny_serving import copy_run

SETTINGS = TrackingSettings(timeout_s=1, retries=0)
ODD = ["Fotos März #2 (50%)/set=a, b", "it's a%20b?x=1"]
MORE = ["per%cent", "a%3Fb?c", "$HOME", "[::1]", "q?x=1&y", "a;b"]
FIRST = """
import sys
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.client import connected
from archipelago.pipeline.tracking.location import locate
from archipelago.pipeline.tracking.sync import _experiment
settings = TrackingSettings()
place = locate(RunFolder(sys.argv[1]), settings)
import mlflow
print("ready", flush=True)
sys.stdin.readline()
with connected(place, settings) as client:
    client.create_run(_experiment(client, "archipelago", place))
"""


def test_a_database_and_its_artifacts_lie_beside_the_run_whatever_its_name(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hi")
    seen = {"note.txt"}
    for name in MORE + ODD:
        home = tmp_path / name
        place = locate(RunFolder(home / "run"), SETTINGS)
        assert place.database == home / "mlflow.db"
        assert shlex.split(place.view) == ["mlflow", "ui", "--backend-store-uri", place.uri]
        again = locate(RunFolder("/elsewhere"), SETTINGS.model_copy(update={"uri": place.uri}))
        assert again.database == place.database and again.artifacts == place.artifacts
        if name in MORE:
            continue
        with connected(place, SETTINGS) as api:
            run = api.create_run(_experiment(api, "archipelago", place))
            api.log_artifact(run.info.run_id, str(note))
        seen.add(Path(name).parts[0])
        assert {file.name for file in home.iterdir()} == {"mlflow.db", "mlflow-artifacts"}, name
        assert len(list(home.rglob("note.txt"))) == 1, name
        with closing(sqlite3.connect(home / "mlflow.db")) as base:
            assert base.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
    assert {file.name for file in tmp_path.iterdir()} == seen, "no folder of an escaped name"


def test_first_runs_at_once_make_one_database(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, str(tmp_path / name)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in "abc"
    ]
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    said = [run.communicate("go\n", timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        assert base.execute("SELECT COUNT(*) FROM runs").fetchone() == (3,)


def test_a_deleted_experiment_is_told_and_restored_is_filled(
    served_run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    assert sync(run, SETTINGS)
    place = locate(run, SETTINGS)
    with connected(place, SETTINGS) as api:
        number = _experiment(api, SETTINGS.experiment, place)
        api.delete_experiment(number)
    caplog.clear()
    assert not sync(run, SETTINGS)
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "\n" not in record.getMessage()
    for words in ("was deleted", f"restore -x {number}", "tracking.experiment=NAME"):
        assert words in record.getMessage()
    with connected(place, SETTINGS) as api:
        api.restore_experiment(number)
    assert sync(run, SETTINGS)


def test_a_locked_database_costs_seconds_and_one_warning(
    served_run: RunFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    place = locate(run, SETTINGS)
    with connected(place, SETTINGS):
        pass
    waits: list[float] = []
    real = sqlite3.connect

    def connect(*arguments: object, timeout: float = 5.0, **options: object) -> sqlite3.Connection:
        waits.append(timeout)
        return real(*arguments, timeout=0.0, **options)  # type: ignore[call-overload, no-any-return]

    with closing(real(place.database or "")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(client.sqlite3, "connect", connect)
        tracker = Tracker(run, SETTINGS)
        caplog.clear()
        for _ in range(3):
            tracker.poke()
            deadline = time.monotonic() + 60
            while tracker._due.is_set() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert not tracker.close()
        holder.rollback()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "database is locked" in warnings[0]
    assert set(waits) == {SETTINGS.timeout_s}, "MLflow's own minutes were not spent"
    assert sync(run, SETTINGS)


def test_unwritable_database_never_stops_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "run", stages=1)
    (tmp_path / "taken").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert not sync(
            run, SETTINGS.model_copy(update={"uri": f"sqlite:///{tmp_path}/taken/mlflow.db"})
        )
    assert len(caplog.records) == 1 and "later sync" in caplog.text
