"""Sequence run and child runs in MLflow: found by tag or created, filled where they changed."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archipelago.pipeline.records.card import data_of
from archipelago.pipeline.store import names, sha256
from archipelago.pipeline.store.documents import dumps
from archipelago.pipeline.store.resume import flatten
from archipelago.pipeline.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

TAG = "archipelago."
PARENT = "mlflow.parentRunId"
LONGEST_PARAM, MOST_PARAMS, MOST_METRICS = 6000, 100, 1000


def tags(**values: Any) -> dict[str, str]:
    """Our tags, prefixed; None is left out."""
    return {f"{TAG}{key}": str(value) for key, value in values.items() if value is not None}


def sequence_run(
    client: MlflowClient, experiment: str, snapshot: Snapshot, reference_of: str | None
) -> Run:
    """The run of the whole stream, found by its key or created."""
    where = f"tags.`{TAG}key` = '{snapshot.key}' AND tags.`{TAG}level` = 'sequence'"
    found = client.search_runs([experiment], where, max_results=1)
    if found:
        return found[0]
    method = snapshot.config["method"]["name"]
    return client.create_run(
        experiment,
        start_time=snapshot.born,
        run_name=f"{snapshot.place.rstrip('/').rsplit('/', 1)[-1]} {method}",
        tags=tags(
            key=snapshot.key,
            level="sequence",
            run=snapshot.place,
            method=method,
            reference=method if reference_of else None,
            reference_of=reference_of,
        ),
    )


def fill_sequence(client: MlflowClient, run: Run, snapshot: Snapshot) -> None:
    """Params, metrics of every stage, result files and status."""
    digest = sha256(dumps([snapshot.status, {n: sha256(d) for n, d in snapshot.files.items()}]))
    if run.data.tags.get(f"{TAG}digest") == digest:
        return
    log_files(client, run.info.run_id, snapshot.files)
    set_status(client, run, snapshot.status, snapshot.time())
    log(client, run, _params(snapshot), _sequence_metrics(snapshot), tags(digest=digest))


def child_runs(client: MlflowClient, experiment: str, parent: str) -> dict[int, Run]:
    """Child runs of a sequence run by stage."""
    found = client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", max_results=10_000)
    return {int(run.data.tags[f"{TAG}stage"]): run for run in found}


def create_child(
    client: MlflowClient, experiment: str, parent: str, snapshot: Snapshot, stage: int
) -> Run:
    """The run of one stage, with an explicit parent."""
    task = snapshot.task(stage)
    return client.create_run(
        experiment,
        start_time=snapshot.time(stage, "stage-started"),
        run_name=f"{stage:03d}-{task}",
        tags={PARENT: parent}
        | tags(key=snapshot.key, level="stage", run=snapshot.place, stage=stage, task=task),
    )


def child_digest(snapshot: Snapshot, stage: int) -> str:
    """Hash of all that a child run shows; equal = nothing to do."""
    ref, card = snapshot.groups.get(stage, (None, None))
    trained = snapshot.event("stage-trained", stage)
    shown = [ref.sha256 if ref else None, card, snapshot.evaluations.get(stage), trained]
    return sha256(dumps(shown))


def fill_child(client: MlflowClient, run: Run, snapshot: Snapshot, stage: int) -> None:
    """Params, metrics, task.json and status of a stage; last, the digest that says all is there."""
    ref, card = snapshot.groups.get(stage, (None, None))
    params, sha = {}, None
    if ref is not None and card is not None:
        params = {
            "method": card["method"],
            "neighbours": ", ".join(n["task"] for n in card["neighbours"]) or "none",
            "classes": data_of(card)["classes"],
            "data.train": data_of(card)["digests"]["train"],
        }
        sha = ref.sha256
        kept = {names.TASK, names.EXPERTS} & snapshot.run.groups.files(ref).keys()
        files = {name: snapshot.run.groups.read(ref, name) for name in sorted(kept)}
        log_files(client, run.info.run_id, files | _confusion(snapshot, stage))
    set_status(client, run, "FINISHED", snapshot.time(stage))
    marks = tags(sha256=sha, digest=child_digest(snapshot, stage))
    log(client, run, params, _child_metrics(snapshot, stage), marks)


def _confusion(snapshot: Snapshot, stage: int) -> dict[str, bytes]:
    """Who was taken for whom after a stage, as an artifact of its run."""
    record = snapshot.evaluations.get(stage) or {}
    if not record.get("identifier"):
        return {}
    shown = {name: record["identifier"][name] for name in ("options", "confusion")}
    return {"confusion.json": dumps({"tasks": record["tasks"], **shown})}


def log(
    client: MlflowClient,
    run: Run,
    params: Mapping[str, Any],
    metrics: Sequence[Metric],
    marks: Mapping[str, str],
) -> None:
    """Params, metrics and, after all of them, tags.

    A param that the run has stays: MLflow never changes one, the run folder may. Metrics carry
    their own times, so that logging the same one again adds nothing.
    """
    from mlflow.entities import Param, RunTag

    run_id = run.info.run_id
    new = [
        Param(safe(key), ("null" if value is None else str(value))[:LONGEST_PARAM])
        for key, value in sorted(params.items())
        if safe(key) not in run.data.params
    ]
    for start in range(0, len(new), MOST_PARAMS):
        client.log_batch(run_id, params=new[start : start + MOST_PARAMS])
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in marks.items()])


def log_files(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    """Files as artifacts under their own names; an older one of the same name is replaced."""
    if not files:
        return
    with tempfile.TemporaryDirectory(prefix="archipelago-") as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        client.log_artifacts(run_id, folder)


def set_status(client: MlflowClient, run: Run, status: str, time: int) -> None:
    """Status and, for an ended run, when it ended."""
    if status == "RUNNING":
        client.update_run(run.info.run_id, status)
    else:
        client.set_terminated(run.info.run_id, status, end_time=time)


def safe(name: str) -> str:
    """`name` with only what MLflow allows in keys."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _params(snapshot: Snapshot) -> dict[str, Any]:
    backbone = {f"backbone_{key}": value for key, value in snapshot.facts["backbone"].items()}
    tasks = ", ".join(snapshot.facts["stream"]["tasks"])
    config = {k: json.dumps(v) if isinstance(v, list) else v for k, v in flatten(snapshot.config)}
    return {**config, **backbone, "tasks": tasks, "seed": snapshot.facts["seed"]}


def _metric(name: str, value: float | None, time: int, step: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [] if value is None else [Metric(safe(name), float(value), time, step)]


def _row(snapshot: Snapshot, stage: int, step: int) -> list[Metric]:
    """One row of both matrices and the identifier's figures after that stage."""
    record, time = snapshot.evaluations.get(stage), snapshot.time(stage)
    if record is None:
        return []
    found = []
    for setting, values in record["accuracy"].items():
        for task, value in zip(record["tasks"], values, strict=True):
            found += _metric(f"{setting}/{task}", value, time, step)
    for task, figures in record.get("metrics", {}).items():
        for name, score in figures.items():
            found += _metric(f"metrics/{task}/{name}", score["value"], time, step)
    for name in ("closed_accuracy", "accuracy", "seen_acceptance", "unseen_auroc"):
        found += _metric(f"identifier/{name}", (record["identifier"] or {}).get(name), time, step)
    return found + _metric("lambda", record.get("lambda"), time, step)


def _sequence_metrics(snapshot: Snapshot) -> list[Metric]:
    found = [metric for stage in snapshot.stages for metric in _row(snapshot, stage, stage)]
    step = max(snapshot.stages, default=0)
    for name in ("transfer", "average", "last", "forgetting", "bwt", "last_oracle", "delta_m"):
        found += _metric(name, snapshot.report.get(name), snapshot.time(step), step)
    for name, value in snapshot.report.get("seconds", {}).items():
        found += _metric(f"seconds/{name}", value, snapshot.time(step), step)
    return found


def _child_metrics(snapshot: Snapshot, stage: int) -> list[Metric]:
    found = _row(snapshot, stage, stage)
    trained = snapshot.event("stage-trained", stage)
    time, steps = snapshot.time(stage, "stage-trained"), trained.get("steps") or 0
    for point in trained.get("curve") or ():  # {"step", "loss", "held_out_accuracy", ...}
        for name, value in point.items():
            if name != "step":
                found += _metric(f"train/{name}", value, time, point["step"])
    for name in ("loss", "held_out_loss", "held_out_accuracy", "images_per_second"):
        found += _metric(f"train/{name}", trained.get(name), time, steps)
    _, card = snapshot.groups.get(stage, (None, {}))
    for kind in ("parameters", "bytes"):
        for name, value in card.get(kind, {}).items():
            found += _metric(f"{kind}/{name}", value, time, stage)
    return found
