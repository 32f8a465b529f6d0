"""Bring MLflow up to date with a run folder. Training never waits for it and never fails by it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.redact import discreet_text
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import models, runs, versions, words
from archipelago.pipeline.tracking.client import connected
from archipelago.pipeline.tracking.location import Location, locate
from archipelago.pipeline.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def sync(run: RunFolder, settings: TrackingSettings, told: set[str] | None = None) -> bool:
    """Project `run` and its reference runs into MLflow; True when MLflow now holds all of it.

    Everything is found by tag or created, so this may be called after each stage, after a crash,
    late, or against an empty server. An MLflow that does not answer costs a warning and at most
    `timeout_s` for each of `retries` + 1 attempts. Nothing in the run folder is written. What is in
    `told` is not said again, and what is said is added to it.

    Raises UserError for tracking settings that can never work.
    """
    if not settings.enabled:
        return True
    location = locate(run, settings)
    started = time.monotonic()
    try:
        with connected(location, settings) as client:
            experiment = _experiment(client, settings.experiment, location)
            key = _project(client, experiment, run, settings.model, None)
            for other in run.references().values():
                _project(client, experiment, other, None, key)
    except IntegrityError:
        raise
    except Exception as error:
        reason = _reason(error)
        if told is None or reason not in told:
            log.warning(
                "tracking: %s is behind (%s); a later sync fills it in", location.shown, reason
            )
        if told is not None:
            told.add(reason)
        return False
    log.info("tracking: %s is up to date (%.1f s)", location.shown, time.monotonic() - started)
    return True


def _experiment(client: MlflowClient, name: str, location: Location) -> str:
    """The experiment's id; its artifact root is fixed when it is created.

    Raises UserError where somebody has deleted it.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location.artifacts)
        except MlflowException:  # another run was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"experiment '{name}' was deleted: restore it, mlflow experiments restore -x"
            f" {found.experiment_id}, or set tracking.experiment=NAME"
        )
    return found.experiment_id


def _project(
    client: MlflowClient,
    experiment: str,
    run: RunFolder,
    registered: str | None,
    reference_of: str | None,
) -> str:
    """One run folder as a sequence run, its stages, groups and versions; returns its key."""
    snapshot = Snapshot.take(run)
    sequence = runs.sequence_run(client, experiment, snapshot, reference_of)
    parent = sequence.info.run_id
    children = runs.child_runs(client, experiment, parent)
    known = models.logged_models(client, experiment, snapshot)
    for stage in snapshot.stages:
        if stage in snapshot.erased:
            continue
        child = children.get(stage)
        if child is None:
            child = runs.create_child(client, experiment, parent, snapshot, stage)
        elif child.data.tags.get(f"{runs.TAG}digest") == runs.child_digest(snapshot, stage):
            continue
        else:  # begun by a sync that did not end: a search does not tell a run's input models
            child = client.get_run(child.info.run_id)
        if stage in snapshot.groups:
            models.log_group(client, child, snapshot, stage, known)
        runs.fill_child(client, child, snapshot, stage)
    if registered is not None:
        versions.register(client, registered, sequence, snapshot, known)
    if snapshot.calls:
        words.register_prompts(client)
        words.log_traces(client, experiment, snapshot)
    runs.fill_sequence(client, sequence, snapshot)
    return snapshot.key


def _reason(error: BaseException) -> str:
    """The first cause in one line: MLflow wraps a refused connection into four layers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    text = discreet_text(str(error)).strip()
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
