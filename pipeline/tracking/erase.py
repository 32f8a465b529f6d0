"""Take a forgotten domain out of MLflow: its logged models, their files, and its run."""

from __future__ import annotations

import logging

from pipeline.settings import TrackingSettings
from pipeline.store import RunFolder
from pipeline.tracking import models, runs
from pipeline.tracking.client import connected
from pipeline.tracking.location import locate
from pipeline.tracking.snapshot import Snapshot

log = logging.getLogger(__name__)


def erase_tracked(run: RunFolder, settings: TrackingSettings, task: str) -> int:
    """Remove artifacts and entries of one domain; returns how many. MLflow down is a warning."""
    location = locate(run, settings)
    if location.database is not None and not location.database.exists():
        return 0
    try:
        with connected(location, settings) as client:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            experiment = client.get_experiment_by_name(settings.experiment)
            if experiment is None:
                return 0
            snapshot, count = Snapshot.take(run), 0
            known = models.logged_models(client, experiment.experiment_id, snapshot)
            for model in known.values():
                if model.tags.get(f"{runs.TAG}task") == task:
                    get_artifact_repository(model.artifact_location).delete_artifacts()
                    client.delete_logged_model(model.model_id)
                    count += 1
            where = f"tags.`{runs.TAG}key` = '{snapshot.key}' AND tags.`{runs.TAG}task` = '{task}'"
            for found in client.search_runs([experiment.experiment_id], where):
                get_artifact_repository(found.info.artifact_uri).delete_artifacts()
                client.delete_run(found.info.run_id)
                count += 1
            return count
    except Exception as error:
        log.warning("tracking: not erased (%s: %s); run it again", type(error).__name__, error)
        return 0
