"""A registered version for each manifest: a LoggedModel with an MLmodel that loads and answers.

It refers to the run folder and to the LoggedModels of its groups and holds no copy of either
(`pipeline/export/pyfunc.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archipelago.pipeline.store import Manifest, names
from archipelago.pipeline.tracking.aliases import name_newest, name_served, run_versions
from archipelago.pipeline.tracking.models import all_models
from archipelago.pipeline.tracking.runs import TAG, log_files, tags
from archipelago.pipeline.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

KIND = "archipelago"
Known = Mapping[tuple[int, str], "LoggedModel"]


def version_models(
    client: MlflowClient, experiment: str, snapshot: Snapshot
) -> dict[str, LoggedModel]:
    """LoggedModels of this run's manifests by the manifest's sha256."""
    mark = f"{TAG}manifest_sha256"
    found = all_models(client, experiment, snapshot)
    return {model.tags[mark]: model for model in found if mark in model.tags}


def register(
    client: MlflowClient, name: str, parent: Run, snapshot: Snapshot, known: Known
) -> None:
    """One version of the registered model per manifest, and the aliases that name some of them.

    A manifest of which a group was erased gets none.
    """
    manifests = [manifest for manifest in snapshot.manifests if manifest.groups]
    if not manifests:
        return
    _ensure_registered(client, name)
    models = version_models(client, parent.info.experiment_id, snapshot)
    versions = _current(client, name, snapshot, models)
    missing = [
        manifest
        for manifest in manifests
        if manifest.sha256 not in versions and all(k in known for k in _keys(manifest))
    ]
    if missing:
        _keep_basis(client, parent, snapshot)
        with _writer() as write:
            for manifest in missing:
                model = models.get(manifest.sha256) or _create(client, parent, snapshot, manifest)
                if str(model.status) != "READY":
                    write(client, model.model_id, _config(parent, snapshot, manifest, known))
                    client.finalize_logged_model(model.model_id, "READY")
                version = _create_version(client, name, parent, snapshot, manifest, model)
                versions[manifest.sha256] = version
    name_newest(client, name, snapshot, versions)
    name_served(client, name, snapshot, versions)


def _keys(manifest: Manifest) -> list[tuple[int, str]]:
    return [(ref.stage, ref.sha256) for ref in manifest.groups]


def _current(
    client: MlflowClient, name: str, snapshot: Snapshot, models: Mapping[str, LoggedModel]
) -> dict[str, str]:
    """Versions by manifest sha256; those that name something else than its model are removed."""
    versions = {}
    for version in run_versions(client, name, snapshot):
        sha256 = version.tags[f"{TAG}manifest_sha256"]
        model = models.get(sha256)
        if model is not None and version.source == f"models:/{model.model_id}":
            versions[sha256] = str(version.version)
        else:
            client.delete_model_version(name, version.version)
    return versions


def _keep_basis(client: MlflowClient, parent: Run, snapshot: Snapshot) -> None:
    """What all versions need beside their groups, once a run."""
    mark = tags(basis=True)
    if mark.keys() <= parent.data.tags.keys() or not snapshot.run.folder.exists(names.BASIS):
        return
    log_files(client, parent.info.run_id, {names.BASIS: snapshot.run.folder.read(names.BASIS)})
    for key, value in mark.items():
        client.set_tag(parent.info.run_id, key, value)


@contextmanager
def _writer() -> Iterator[Any]:
    """Uploads the MLmodel of one version after another; what they share is made once."""
    from archipelago.pipeline.export import pyfunc  # with MLflow's models: seconds

    with tempfile.TemporaryDirectory(prefix="archipelago-") as place:
        folder = Path(place) / "model"
        model = pyfunc.save(folder)

        def write(client: MlflowClient, model_id: str, config: Mapping[str, Any]) -> None:
            pyfunc.name_version(model, folder, model_id, config)
            client.log_model_artifacts(model_id, str(folder))

        yield write


def _config(parent: Run, snapshot: Snapshot, manifest: Manifest, known: Known) -> dict[str, Any]:
    """Where a version is found again, see `pyfunc.open_version`."""
    return {
        "run": snapshot.place,
        "manifest": manifest.version,
        "sha256": manifest.sha256,
        "tracked": parent.info.run_id,
        "groups": [
            {
                "stage": ref.stage,
                "task": ref.name,
                "folder": ref.folder,
                "sha256": ref.sha256,
                "model": known[ref.stage, ref.sha256].model_id,
            }
            for ref in manifest.groups
        ],
    }


def _tags(snapshot: Snapshot, manifest: Manifest) -> dict[str, str]:
    return tags(
        key=snapshot.key,
        run=snapshot.place,
        manifest=manifest.version,
        manifest_sha256=manifest.sha256,
        groups=len(manifest.groups),
    )


def _create(
    client: MlflowClient, parent: Run, snapshot: Snapshot, manifest: Manifest
) -> LoggedModel:
    return client.create_logged_model(
        parent.info.experiment_id,
        name=f"manifest-{manifest.version:03d}",
        source_run_id=parent.info.run_id,
        tags=_tags(snapshot, manifest),
        model_type=KIND,
    )


def _ensure_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Model versions of archipelago runs.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_version(
    client: MlflowClient,
    name: str,
    parent: Run,
    snapshot: Snapshot,
    manifest: Manifest,
    model: LoggedModel,
) -> str:
    tasks = ", ".join(ref.name for ref in manifest.groups)
    version = client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=parent.info.run_id,
        model_id=model.model_id,
        description=f"{len(manifest.groups)} groups: {tasks}",
        tags=_tags(snapshot, manifest),
        await_creation_for=0,
    )
    return str(version.version)
