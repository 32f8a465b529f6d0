"""Take a forgotten domain out of MLflow: its models and their files, its run, its calls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import models, runs, versions
from archipelago.pipeline.tracking.aliases import run_versions
from archipelago.pipeline.tracking.client import connected
from archipelago.pipeline.tracking.location import locate, tracked_before
from archipelago.pipeline.tracking.snapshot import Snapshot
from archipelago.pipeline.tracking.sync import sync

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def forget_tracked(run: RunFolder, settings: TrackingSettings, task: str, erase: bool) -> int:
    """Bring MLflow up to date with a run that forgot a domain; returns how much was erased.

    The model without it becomes a version, and the aliases follow. Nothing happens where nothing
    was tracked; an MLflow that does not answer is a line in the log: the same call tries again.
    """
    if not tracked_before(run, settings):
        return 0
    count = erase_tracked(run, settings, task) if erase else 0
    sync(run, settings)
    return count


def erase_tracked(run: RunFolder, settings: TrackingSettings, task: str) -> int:
    """Remove artifacts and entries of one domain; returns how many entries.

    Gone are: groups that are not stored any more (the domain's own, and those of dependents from
    before they were mixed anew) with their files, every version that was made with one of them,
    the stage's run with its files, and recorded calls about the domain. MLflow hides deleted
    entries until `mlflow gc` removes them; files are removed at once.
    """
    if not tracked_before(run, settings):
        return 0
    try:
        with connected(locate(run, settings), settings) as client:
            experiment = client.get_experiment_by_name(settings.experiment)
            if experiment is None:
                return 0
            where, snapshot = experiment.experiment_id, Snapshot.take(run)
            count = _erase_models(client, where, settings.model, snapshot, task)
            count += _erase_runs(client, where, snapshot, task)
            return count + _erase_calls(client, where, snapshot, task)
    except Exception as error:
        log.warning("tracking: not erased (%s: %s); run it again", type(error).__name__, error)
        return 0


def _erase_models(
    client: MlflowClient, experiment: str, registered: str, snapshot: Snapshot, task: str
) -> int:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    stored = {(ref.stage, ref.sha256) for ref in snapshot.run.groups.list() if ref.name != task}
    gone = {
        model.model_id: model
        for key, model in models.logged_models(client, experiment, snapshot).items()
        if key not in stored
    }
    whole = {
        manifest.sha256
        for manifest in snapshot.manifests
        if all((ref.stage, ref.sha256) in stored for ref in manifest.groups)
    }
    for sha256, model in versions.version_models(client, experiment, snapshot).items():
        if sha256 not in whole:
            gone[model.model_id] = model
    for version in run_versions(client, registered, snapshot):
        if version.tags[f"{runs.TAG}manifest_sha256"] not in whole:
            client.delete_model_version(registered, version.version)
    for model_id, model in gone.items():
        get_artifact_repository(model.artifact_location).delete_artifacts()
        client.delete_logged_model(model_id)
    return len(gone)


def _erase_runs(client: MlflowClient, experiment: str, snapshot: Snapshot, task: str) -> int:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    found = client.search_runs([experiment], _about(snapshot, task), max_results=1000)
    for run in found:
        get_artifact_repository(run.info.artifact_uri).delete_artifacts()
        client.delete_run(run.info.run_id)
    return len(found)


def _erase_calls(client: MlflowClient, experiment: str, snapshot: Snapshot, task: str) -> int:
    where = _about(snapshot, task)
    found = client.search_traces([experiment], where, max_results=500, include_spans=False)
    if found:
        client.delete_traces(experiment, trace_ids=[trace.info.trace_id for trace in found])
    return len(found)


def _about(snapshot: Snapshot, task: str) -> str:
    return f"tags.`{runs.TAG}key` = '{snapshot.key}' AND tags.`{runs.TAG}task` = '{task}'"
