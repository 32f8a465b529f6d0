"""Where MLflow keeps runs and artifacts.

Without `tracking.uri` all runs in one folder share a sqlite file beside them, `<run>/../mlflow.db`
with `<run>/../mlflow-artifacts`, so that one `mlflow ui` shows and compares them all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.redact import HIDDEN, discreet_text
from pipeline.settings import TrackingSettings
from pipeline.store import RunFolder

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"
SQLITE = "sqlite:///"
SERVERS = {"http", "https", "databricks"}
DATABASES = {"postgresql", "mysql", "mssql"}


@dataclass(frozen=True)
class Location:
    """A tracking URI and the artifact root of new experiments; None = the server decides."""

    uri: str
    artifacts: str | None

    @property
    def shown(self) -> str:
        """The URI without passwords, for messages."""
        return discreet_text(self.uri)

    @property
    def view(self) -> str:
        """How a person looks at it: a web address, or the command that serves one."""
        if urlsplit(self.uri).scheme in SERVERS:
            return self.shown
        return f"mlflow ui --backend-store-uri {self.shown}"

    @property
    def database(self) -> Path | None:
        """The sqlite file, if that is where runs are kept."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None


def locate(run: RunFolder, settings: TrackingSettings) -> Location:
    """Resolve `tracking.uri` and `tracking.artifacts` for `run`.

    Raises UserError, in one line, for the retired file store, relative paths (a submitted job runs
    in a temporary copy of the code) and a run that has no local folder to put sqlite beside.
    """
    artifacts = settings.artifacts
    if artifacts is not None and "://" not in artifacts and not Path(artifacts).is_absolute():
        raise UserError(
            f"tracking.artifacts: {artifacts!r} is relative; give an absolute path or URI"
        )
    if settings.uri is None:
        home = _home(run)
        return Location(f"{SQLITE}{home / DATABASE}", artifacts or (home / ARTIFACTS).as_uri())
    scheme = urlsplit(settings.uri).scheme.partition("+")[0]
    if settings.uri == "databricks" or scheme in SERVERS:
        return Location(settings.uri, artifacts)
    if scheme == "sqlite":
        location = Location(settings.uri, artifacts)
        if location.database is None or not location.database.is_absolute():
            raise UserError(
                f"tracking.uri: {settings.uri!r} is not an absolute file; write sqlite:////dir/mlflow.db"
            )
        return Location(settings.uri, artifacts or (location.database.parent / ARTIFACTS).as_uri())
    if scheme in DATABASES:
        return Location(settings.uri, artifacts or (_home(run) / ARTIFACTS).as_uri())
    raise UserError(
        f"tracking.uri: {Location(settings.uri, None).shown!r} is not supported (MLflow retired "
        "its file store); use null, sqlite:////dir/mlflow.db or a server's http address"
    )


def of_run(run: RunFolder, told: TrackingSettings | None = None) -> TrackingSettings:
    """Where a later job finds what a run has tracked: where it is told to, else as the run itself.

    Raises UserError where the run's own address held a password: secrets are not stored.
    """
    if told is not None and told != TrackingSettings():
        return told
    stored = TrackingSettings.model_validate(run.read()["config"].get("tracking", {}))
    if stored.enabled and HIDDEN in str(stored.uri):
        raise UserError(f"tracking.uri: {stored.uri} lacks its secret: give it whole")
    return stored


def tracked_before(run: RunFolder, settings: TrackingSettings) -> bool:
    """Whether MLflow may hold anything of a run; a sqlite file that is not there does not."""
    if not settings.enabled:
        return False
    database = locate(run, settings).database
    return database is None or database.exists()


def _home(run: RunFolder) -> Path:
    """The folder that holds the run; the run itself where that is a root or read-only."""
    if run.folder.local is None:
        raise UserError(
            f"tracking.uri: {run.folder.shown()} is no local folder that sqlite could lie beside; "
            "give a tracking server, or set tracking.enabled=false"
        )
    inside, beside = run.folder.local, run.folder.local.parent
    if (inside / DATABASE).exists():
        return inside
    shared = beside != Path(beside.anchor) and (not beside.exists() or os.access(beside, os.W_OK))
    return beside if shared else inside
