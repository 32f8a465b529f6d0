"""Groups as LoggedModels, with their files and their lineage."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archipelago.pipeline.records.card import data_of
from archipelago.pipeline.store import GroupRef
from archipelago.pipeline.tracking.runs import TAG, tags
from archipelago.pipeline.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Run

COMMIT = "COMMIT"
DIGEST = 36
"""MLflow keeps so many characters of a dataset's digest; its source holds all of them."""


def logged_models(
    client: MlflowClient, experiment: str, snapshot: Snapshot
) -> dict[tuple[int, str], LoggedModel]:
    """The groups of this run that MLflow has, by (stage, sha256)."""
    return {
        (int(model.tags[f"{TAG}stage"]), model.tags[f"{TAG}sha256"]): model
        for model in all_models(client, experiment, snapshot)
        if f"{TAG}stage" in model.tags
    }


def all_models(client: MlflowClient, experiment: str, snapshot: Snapshot) -> Iterator[LoggedModel]:
    """LoggedModels of this run: groups, and versions made of them (`versions.py`)."""
    token = None
    while True:
        where = f"tags.`{TAG}key` = '{snapshot.key}'"
        page = client.search_logged_models([experiment], where, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def log_group(
    client: MlflowClient,
    run: Run,
    snapshot: Snapshot,
    stage: int,
    known: dict[tuple[int, str], LoggedModel],
) -> None:
    """A stage's groups, newest last, as outputs of its run, its data and the previous group as
    inputs."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    run_id = run.info.run_id  # `run` knows what an earlier, interrupted sync has logged
    given = {entry.model_id for entry in run.outputs.model_outputs} if run.outputs else set()
    taken = {entry.model_id for entry in run.inputs.model_inputs} if run.inputs else set()
    earlier = [pair for pair in snapshot.superseded if pair[0].stage == stage]
    for ref, card in [*earlier, snapshot.groups[stage]]:
        model = known.get((stage, ref.sha256)) or _create(client, run, snapshot, ref, card)
        known[stage, ref.sha256] = model
        if str(model.status) != "READY":
            _upload(client, model.model_id, snapshot, ref)
            client.finalize_logged_model(model.model_id, "READY")
        if model.model_id not in given:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=stage)])
    parents = [m for (_, digest), m in known.items() if digest == card["parent"]]
    new = [LoggedModelInput(m.model_id) for m in parents if m.model_id not in taken]
    client.log_inputs(run_id, datasets=_datasets(snapshot, card), models=new or None)


def _create(
    client: MlflowClient, run: Run, snapshot: Snapshot, ref: GroupRef, card: dict[str, Any]
) -> LoggedModel:
    experts = snapshot.config.get("experts", {})
    params = {
        **{f"experts.{key}": value for key, value in experts.items()},
        "method": card["method"],
        "backbone": snapshot.facts["backbone"]["name"],
        "seed": snapshot.facts["seed"],
        "parameters": card["parameters"]["group"],
        "neighbours": ", ".join(n["task"] for n in card["neighbours"]) or "none",
    }
    return client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "_", ref.folder),
        source_run_id=run.info.run_id,
        params={key: str(value) for key, value in params.items()},
        tags=tags(
            key=snapshot.key,
            run=snapshot.place,
            stage=ref.stage,
            task=ref.name,
            sha256=ref.sha256,
            parent=card["parent"],
        ),
        model_type="expert-group",
    )


def _upload(client: MlflowClient, model_id: str, snapshot: Snapshot, ref: GroupRef) -> None:
    """Every file of the group, verified on the way, and COMMIT with their hashes."""
    groups = snapshot.run.groups
    files = {name: groups.read(ref, name) for name in groups.files(ref)}
    files[COMMIT] = snapshot.run.folder.read(f"groups/{ref.folder}/{COMMIT}")
    with tempfile.TemporaryDirectory(prefix="archipelago-") as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        client.log_model_artifacts(model_id, folder)


def _datasets(snapshot: Snapshot, card: dict[str, Any]) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs, data = [], data_of(card)
    for split, digest in sorted(data["digests"].items()):
        context = "training" if split == "train" else "eval"
        source = {"task": card["name"], "split": split, "sha256": digest}
        profile = {"rows": data["counts"].get(split), "classes": data["classes"]}
        dataset = Dataset(
            name=f"{card['name']}/{split}",
            digest=digest[:DIGEST],
            source_type=str(snapshot.config["stream"]["reader"]),
            source=json.dumps(source),
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs
