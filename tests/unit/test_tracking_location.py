"""Where runs are tracked, and what is refused before anything is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import Tracker, locate


def _at(run: Path | RunFolder, **values: object) -> tuple[str, str | None]:
    folder = run if isinstance(run, RunFolder) else RunFolder(str(run))
    location = locate(folder, TrackingSettings(**values))
    return location.uri, location.artifacts


def test_runs_of_one_folder_share_a_database(tmp_path: Path) -> None:
    expected = (f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "mlflow-artifacts").as_uri())
    assert _at(tmp_path / "a") == _at(tmp_path / "b") == expected
    location = locate(RunFolder(str(tmp_path / "a")), TrackingSettings())
    assert location.view == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"


def test_a_run_at_the_root_keeps_its_own(tmp_path: Path) -> None:
    assert _at(Path("/run"))[0] == "sqlite:////run/mlflow.db"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mlflow.db").touch()
    assert _at(tmp_path / "run")[0] == f"sqlite:///{tmp_path}/run/mlflow.db"


def test_servers_and_databases(tmp_path: Path) -> None:
    assert _at(tmp_path / "a", uri="http://host:5000") == ("http://host:5000", None)
    given = _at(tmp_path / "a", uri="http://host:5000", artifacts="s3://bucket/x")
    assert given == ("http://host:5000", "s3://bucket/x")
    beside = _at(tmp_path / "a", uri="sqlite:////data/my.db")
    assert beside == ("sqlite:////data/my.db", "file:///data/mlflow-artifacts")
    uri, artifacts = _at(tmp_path / "a", uri="postgresql+psycopg2://u:secret@h/db")
    assert uri.endswith("secret@h/db") and artifacts == (tmp_path / "mlflow-artifacts").as_uri()
    shown = locate(RunFolder(str(tmp_path)), TrackingSettings(uri="http://u:secret@host")).view
    assert "secret" not in shown and "host" in shown


@pytest.mark.parametrize("uri", ["file:///runs", "/runs/mlruns", "mlruns", "ftp://host/x", ""])
def test_file_store_and_strangers_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"^tracking\.uri: .*sqlite:////dir/mlflow\.db") as refused:
        _at(tmp_path / "a", uri=uri)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite://", "sqlite:///:memory:"])
def test_relative_sqlite_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"^tracking\.uri: .* absolute"):
        _at(tmp_path / "a", uri=uri)


def test_relative_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tracking\.artifacts: 'here' is relative"):
        _at(tmp_path / "a", artifacts="here")


def test_remote_run_needs_a_server() -> None:
    run = RunFolder("bucket/run", filesystem=fs._MockFileSystem())
    with pytest.raises(UserError, match=r"^tracking\.uri: .* tracking server"):
        _at(run)
    assert _at(run, uri="https://mlflow.example")[1] is None


def test_tracker_refuses_at_once_and_does_nothing_when_disabled(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"tracking\.uri"):
        Tracker(run, TrackingSettings(uri="mlruns"))
    off = Tracker(run, TrackingSettings(enabled=False, uri="mlruns"))
    off.poke()
    assert off.close() and not list(tmp_path.iterdir())
