"""A MLflow client that fails fast, says nothing and leaves the process as it found it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.tracking.location import Location

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAKING_S = 60  # a new database takes seconds, on a loaded machine more
NOISY = ("alembic", "mlflow", "urllib3.connectionpool")


@contextlib.contextmanager
def connected(location: Location, settings: TrackingSettings) -> Iterator[MlflowClient]:
    """A client for `location`. MLflow reads its limits from the environment, so they are set for
    the time of this context only. Nothing is sent before the client is first used.

    A sqlite file is made here, by one process at a time: MLflow's migrations disturb each other.

    Raises OSError when a sqlite file cannot be written, or is locked by another program.
    """
    if location.database is not None:  # said here: MLflow would retry for minutes
        _check_writable(location.database, settings.timeout_s)
    environment = {
        "MLFLOW_TRACKING_URI": location.uri,
        "MLFLOW_REGISTRY_URI": location.uri,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(settings.timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(settings.retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    with _environment(environment):
        from mlflow import MlflowClient  # 2 s

        with _silence():
            with _alone(location.database.parent) if location.database else nullcontext():
                client = MlflowClient(tracking_uri=location.uri, registry_uri=location.uri)
            yield client


def _check_writable(database: Path, patience_s: float) -> None:
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.open("ab"):
        pass
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=patience_s)) as base:
            base.execute("BEGIN IMMEDIATE")
            base.rollback()
    except sqlite3.Error as error:
        raise OSError(f"{database}: {error}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold off others who make a database in this folder; not where it has no locks."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + MAKING_S
        while _busy(handle):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{folder}: somebody has been making a database for {MAKING_S} s"
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _busy(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Migrations and retries are MLflow's own business; what fails is reported once, by `sync`."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
