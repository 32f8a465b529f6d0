"""A MLflow client that fails fast, says nothing and leaves the process as it found it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.settings import TrackingSettings
from pipeline.tracking.location import Location

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOISY = ("alembic", "mlflow", "urllib3.connectionpool")


@contextlib.contextmanager
def connected(location: Location, settings: TrackingSettings) -> Iterator[MlflowClient]:
    """A client for `location`. MLflow reads its limits from the environment, so they are set for
    the time of this context only. Nothing is sent before the client is first used.

    Raises OSError when the folder of a sqlite file cannot be written.
    """
    if location.database is not None:  # said here: MLflow would retry for minutes
        location.database.parent.mkdir(parents=True, exist_ok=True)
        with location.database.open("ab"):
            pass
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
            yield MlflowClient(tracking_uri=location.uri, registry_uri=location.uri)


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
