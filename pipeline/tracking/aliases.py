"""Names of a run's model versions: `newest`, also `candidate`; `serving`, the one that answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.client import connected
from archipelago.pipeline.tracking.location import locate, tracked_before
from archipelago.pipeline.tracking.runs import TAG
from archipelago.pipeline.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

NEWEST, CANDIDATE, SERVING = "newest", "candidate", "serving"


def run_versions(client: MlflowClient, name: str, snapshot: Snapshot) -> list[ModelVersion]:
    """Versions of this run, found by tags: MLflow's numbers mean nothing here."""
    where = f"name = '{name}' AND tags.`{TAG}key` = '{snapshot.key}'"
    return list(client.search_model_versions(where, max_results=10_000))


def known_versions(client: MlflowClient, name: str, snapshot: Snapshot) -> dict[str, str]:
    """Version by manifest sha256."""
    found = run_versions(client, name, snapshot)
    return {version.tags[f"{TAG}manifest_sha256"]: str(version.version) for version in found}


def name_newest(
    client: MlflowClient, name: str, snapshot: Snapshot, versions: dict[str, str]
) -> None:
    """`newest` and `candidate` are the version of the newest manifest; nothing where its groups
    were erased."""
    manifests = [manifest for manifest in snapshot.manifests if manifest.groups]
    newest = versions.get(manifests[-1].sha256) if manifests else None
    if newest is None:
        return
    aliases = client.get_registered_model(name).aliases
    for alias in (NEWEST, CANDIDATE):
        if str(aliases.get(alias)) != newest:
            client.set_registered_model_alias(name, alias, newest)


def name_served(
    client: MlflowClient, name: str, snapshot: Snapshot, versions: dict[str, str]
) -> None:
    """`serving` is the version of the manifest that the run's `serving.json` names.

    A run that was never published leaves the alias to whichever run has it. Where the served
    manifest has no version, an alias that names an older one of this run is taken away: it would
    be wrong.
    """
    for _ in range(3):  # somebody may publish meanwhile
        served = snapshot.served()
        if served is None or not versions:
            return
        wanted = versions.get(served)
        current = client.get_registered_model(name).aliases.get(SERVING)
        if wanted is not None and str(current) != wanted:
            client.set_registered_model_alias(name, SERVING, wanted)
        elif wanted is None and str(current) in versions.values():
            client.delete_registered_model_alias(name, SERVING)
        if snapshot.served() == served:
            return


def note_serving(run: RunFolder, settings: TrackingSettings) -> bool:
    """Bring `serving` up to date after a publication; whether MLflow has it now.

    Nothing is created: what MLflow does not know yet, the next sync brings with its aliases. An
    MLflow that does not answer is a line in the log and nothing else.
    """
    try:
        if not tracked_before(run, settings):
            return False
        with connected(locate(run, settings), settings) as client:
            snapshot = Snapshot.take(run)
            versions = known_versions(client, settings.model, snapshot)
            name_served(client, settings.model, snapshot, versions)
            return snapshot.served() in versions
    except Exception as error:
        why = str(error).strip().splitlines()[:1]
        log.warning("tracking: alias '%s' is behind (%s: %s)", SERVING, type(error).__name__, why)
        return False
