"""Where MLflow keeps runs and artifacts.

Without `tracking.uri` all runs in one folder share a sqlite file beside them, `<run>/../mlflow.db`
with `<run>/../mlflow-artifacts`, so that one `mlflow ui` shows and compares them all.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.redact import HIDDEN, discreet_text
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"
SQLITE = "sqlite:///"
DRIVER = "sqlite+pysqlite"
ESCAPED = f"{DRIVER}:///"
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
        """How a person looks at it: a web address, or the command that serves one, to be pasted."""
        if urlsplit(self.uri).scheme in SERVERS:
            return self.shown
        return f"mlflow ui --backend-store-uri {shlex.quote(self.shown)}"

    @property
    def database(self) -> Path | None:
        """The sqlite file, if that is where runs are kept."""
        if not self.uri.startswith((SQLITE, ESCAPED)):
            return None
        if not set("%?") & set(self.uri):
            return Path(self.uri.partition(":///")[2])
        from sqlalchemy import make_url

        return Path(make_url(self.uri).database or "")


def sqlite_uri(file: Path) -> str:
    """The URI of a sqlite file, whatever its name is.

    A name with `%` or `?` is escaped as SQLAlchemy reads it. MLflow would make a folder of what is
    escaped, but does not where the URI names the driver.
    """
    plain = f"{SQLITE}{file}"
    if not set("%?") & set(plain):
        return plain
    from sqlalchemy import URL, make_url

    if make_url(plain).database == str(file):
        return plain
    return URL.create(DRIVER, database=str(file)).render_as_string()


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
        return Location(sqlite_uri(home / DATABASE), artifacts or (home / ARTIFACTS).as_uri())
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
