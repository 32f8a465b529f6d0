"""Tracking against real MLflow: sqlite, a server that is away at first, and syncs cut short."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from archipelago.actors.publisher import Publisher
from archipelago.actors.ray_head import free_ports
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.identifiers.description import PROMPTS
from archipelago.pipeline.serving.pointer import next_pointer, read_pointer, write_pointer
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import Tracker, locate, sync
from archipelago.pipeline.tracking.aliases import note_serving
from tests.running import Driver
from tests.unit import stored_run
from tests.unit.synthetic_run import TASKS, write_run
from tests.unit.tiny_serving import point

NAME = "growing"


def _settings(uri: str | None = None, **values: Any) -> TrackingSettings:
    return TrackingSettings(uri=uri, model=NAME, **values)


def _client(run: RunFolder) -> MlflowClient:
    uri = locate(run, _settings()).uri
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("archipelago")
    assert found is not None
    return found.experiment_id


def _sequences(client: MlflowClient) -> list[Any]:
    return client.search_runs([_experiment(client)], "tags.`archipelago.level` = 'sequence'")


def _children(client: MlflowClient, parent: Any) -> list[Any]:
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    found = client.search_runs([_experiment(client)], where)  # tells no input models, get_run does
    whole = [client.get_run(run.info.run_id) for run in found]
    return sorted(whole, key=lambda run: run.info.run_name)


def _inventory(client: MlflowClient) -> dict[str, Any]:
    """All that MLflow holds, with how often each metric, input and output is there."""
    experiment = _experiment(client)
    runs = [client.get_run(run.info.run_id) for run in client.search_runs([experiment])]
    return {
        "runs": sorted(run.info.run_id for run in runs),
        "models": sorted(model.model_id for model in client.search_logged_models([experiment])),
        "versions": sorted(int(v.version) for v in client.search_model_versions()),
        "datasets": sorted(
            (run.info.run_id, entry.dataset.digest)
            for run in runs
            for entry in run.inputs.dataset_inputs
        ),
        "lineage": sorted(
            (run.info.run_id, kind, model.model_id)
            for run in runs
            for kind, models in (
                ("in", run.inputs.model_inputs),
                ("out", run.outputs.model_outputs),
            )
            for model in models
        ),
        "points": sorted(
            (run.info.run_id, key, point.step, point.value)
            for run in runs
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        ),
        "alias": {a: str(v) for a, v in client.get_registered_model(NAME).aliases.items()},
    }


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with a reference, synced once; tests only read it or sync it again."""
    path = tmp_path_factory.mktemp("tracking") / "run"
    run = write_run(path)
    write_run(path / "references/finetune", method="finetune", identifier=None)
    write_report(run)
    assert sync(run, _settings())
    return run


def test_sequence_run_and_children(synced: RunFolder) -> None:
    client = _client(synced)
    sequence = next(r for r in _sequences(client) if "archipelago.reference" not in r.data.tags)
    assert sequence.info.status == "FINISHED"
    assert sequence.data.tags["archipelago.run"] == str(synced.folder.local)
    assert sequence.data.params["method.name"] == "trge"
    report = synced.folder.read_json("report.json")
    assert sequence.data.metrics["last"] == pytest.approx(report["last"])
    history = client.get_metric_history(sequence.info.run_id, "mtil_identified/aid")
    assert [round(point.value, 4) for point in sorted(history, key=lambda p: p.step)] == [
        row[0] for row in report["matrix"]
    ]
    names = {entry.path for entry in client.list_artifacts(sequence.info.run_id)}
    assert {"report.json", "report.html", "matrix.parquet", "run.json", "plots"} <= names
    children = _children(client, sequence)
    assert [child.info.run_name for child in children] == [
        f"{i:03d}-{t}" for i, t in enumerate(TASKS)
    ]
    last = children[-1]
    assert last.data.metrics["mtil_given/mnist"] == pytest.approx(
        report["matrix_oracle"][3][3], abs=1e-3
    )
    assert children[-2].data.metrics["identifier/seen_acceptance"] == 96.0
    assert "identifier/seen_acceptance" not in last.data.metrics, "nothing is unseen then"
    assert last.data.metrics["train/held_out_accuracy"] == 93.0
    assert last.data.params["neighbours"] == "gtsrb"
    assert [entry.path for entry in client.list_artifacts(last.info.run_id)] == [
        "confusion.json",
        "task.json",
    ]


def test_groups_are_models_with_data_and_parents(synced: RunFolder) -> None:
    client = _client(synced)
    sequence = next(r for r in _sequences(client) if "archipelago.reference" not in r.data.tags)
    refs, previous = synced.groups.list(), None
    for ref, child in zip(refs, _children(client, sequence), strict=True):
        (output,) = child.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert str(model.status) == "READY" and model.tags["archipelago.sha256"] == ref.sha256
        assert model.source_run_id == child.info.run_id and model.params["experts.rank"] == "16"
        stored = Path(model.artifact_location.removeprefix("file://"), "group.safetensors")
        assert stored.read_bytes() == synced.groups.read(ref, "group.safetensors")
        assert [entry.model_id for entry in child.inputs.model_inputs] == (
            [previous.model_id] if previous else []
        )
        if previous is not None:
            assert model.tags["archipelago.parent"] == previous.tags["archipelago.sha256"]
        (task,) = json.loads(synced.groups.read(ref, "task.json"))["tasks"]
        inputs = [entry.dataset for entry in child.inputs.dataset_inputs]
        digests = {dataset.name: dataset.digest for dataset in inputs}
        assert digests[f"{ref.name}/train"] == task["digests"]["train"][:36]
        previous = model


def test_each_manifest_is_a_version_found_by_tag(synced: RunFolder) -> None:
    client = _client(synced)
    versions = {v.tags["archipelago.manifest"]: v for v in client.search_model_versions()}
    assert set(versions) == {"1", "2", "3", "4"}  # none for the reference
    for number, version in versions.items():
        manifest = synced.models.read(int(number))
        assert version.tags["archipelago.manifest_sha256"] == manifest.sha256
        model = client.get_logged_model(version.source.removeprefix("models:/"))
        assert model.tags["archipelago.manifest_sha256"] == manifest.sha256
        names = {entry.path for entry in client.list_logged_model_artifacts(model.model_id)}
        assert "MLmodel" in names and not any(name.endswith("safetensors") for name in names)
    for alias in ("newest", "candidate"):
        newest = client.get_model_version_by_alias(NAME, alias)
        assert newest.tags["archipelago.manifest"] == "4"


def test_reference_is_a_sibling(synced: RunFolder) -> None:
    client = _client(synced)
    main, reference = sorted(
        _sequences(client), key=lambda r: "archipelago.reference" in r.data.tags
    )
    assert reference.data.tags["archipelago.reference"] == "finetune"
    assert reference.data.tags["archipelago.reference_of"] == main.data.tags["archipelago.key"]
    assert len(_children(client, reference)) == 4


def test_prompts_and_calls_of_a_model_are_kept_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=1)
    call = {
        "kind": "likelihood",
        "task": TASKS[0],
        "model": "colours@0",
        "began": 1.7e9,
        "seconds": 0.5,
        "asked": ["grey noise"],
        "answer": [-1.5, 0.0],
    }
    run.folder.write_json("identifier/traces/000-test.json", [call, call])
    assert sync(run, _settings()) and sync(run, _settings())
    client = _client(run)
    where = f"tags.`archipelago.task` = '{TASKS[0]}'"
    traces = client.search_traces([_experiment(client)], where)
    assert [t.info.execution_duration for t in traces] == [500, 500]
    assert {t.info.tags["archipelago.call"] for t in traces} == {"000-test/0", "000-test/1"}
    assert json.loads(traces[0].data.request) == ["grey noise"]
    for name, text in PROMPTS.items():
        versions = client.search_prompt_versions(f"archipelago-{name}")
        assert [version.template for version in versions] == [text]
        assert versions[0].tags["archipelago.version"]
    (child,) = _children(client, _sequences(client)[0])
    files = {file.path for file in client.list_artifacts(child.info.run_id)}
    assert {"confusion.json", "task.json"} <= files


def test_the_version_that_answers_is_named_and_a_forgotten_domain_is_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept, gone), place = TASKS[:2], tmp_path / "run"
    run = write_run(place, stages=2, tasks=(kept, gone))
    call = {"kind": "choice", "model": "colours@0", "began": 1.7e9, "seconds": 0.5}
    call |= {"asked": ["grey noise"], "answer": [-1.5, 0.0]}
    calls = [{**call, "task": task} for task in (kept, gone)]
    run.folder.write_json("identifier/traces/001-test.json", calls)
    point(run, 1)
    assert not note_serving(run, _settings()), "nothing is created by a publication"
    assert not (tmp_path / "mlflow.db").exists()
    assert sync(run, _settings())
    client, experiment = _client(run), _experiment(_client(run))

    def named() -> dict[str, str]:
        aliases = client.get_registered_model(NAME).aliases
        versions = {str(v.version): v for v in client.search_model_versions()}
        found = {a: versions[str(v)].tags["archipelago.manifest"] for a, v in aliases.items()}
        assert found.pop("newest") == found["candidate"]
        return found

    assert named() == {"candidate": "2", "serving": "1"}
    point(run, 2)
    assert note_serving(run, _settings()) and named() == {"candidate": "2", "serving": "2"}
    point(run, 1)  # back
    assert note_serving(run, _settings()) and named() == {"candidate": "2", "serving": "1"}
    folders = {
        model.tags.get("archipelago.task") or model.name: Path(
            model.artifact_location.removeprefix("file://")
        )
        for model in client.search_logged_models([experiment])
    }
    assert folders.keys() == {kept, gone, "manifest-001", "manifest-002"}
    assert all((folders[task] / "group.safetensors").exists() for task in (kept, gone))
    (sequence,) = _sequences(client)
    stage = _children(client, sequence)[1].info.run_id
    assert client.list_artifacts(stage)
    monkeypatch.setattr(Publisher, "_publish", _answer_from)
    publisher = Publisher(run.uri, {}, "app", None, _settings().model_dump())
    told = asyncio.run(publisher.forget(gone, erase=True))
    assert told["code"] == 200 and told["untracked"] == 4, "a group, a version, a run and a call"
    assert not folders[gone].exists() and (folders[kept] / "group.safetensors").exists()
    assert not folders["manifest-002"].exists() and (folders["manifest-001"] / "MLmodel").exists()
    left = {model.name for model in client.search_logged_models([experiment])}
    (child,) = _children(client, sequence)
    assert left == {f"000-{kept}", "manifest-001", "manifest-003"}
    assert child.data.tags["archipelago.task"] == kept
    assert client.list_artifacts(child.info.run_id)
    assert client.get_run(stage).info.lifecycle_stage == "deleted"
    assert client.list_artifacts(stage) == []
    versions = {v.tags["archipelago.manifest"] for v in client.search_model_versions()}
    assert versions == {"1", "3"}, "the one of the erased group is gone"
    assert named() == {"candidate": "3", "serving": "3"}
    (trace,) = client.search_traces([experiment], "tags.`archipelago.kind` = 'choice'")
    assert trace.info.tags["archipelago.task"] == kept
    before = _inventory(client)
    assert sync(run, _settings()) and _inventory(client) == before, "and does not come back"


async def _answer_from(self: Publisher, manifest: int, reason: str) -> dict[str, Any]:
    """As if every replica had prepared and acknowledged the manifest."""
    write_pointer(self.run, next_pointer(self.run, manifest), reason)
    self._track(note_serving)
    return {"code": 200, "generation": read_pointer(self.run).generation, "manifest": manifest}


def test_second_sync_adds_nothing(synced: RunFolder) -> None:
    client = _client(synced)
    before = _inventory(client)
    assert sync(synced, _settings())
    assert _inventory(client) == before
    for run in client.search_runs([_experiment(client)]):  # as if cut off before its last word
        client.delete_tag(run.info.run_id, "archipelago.digest")
    assert sync(synced, _settings())
    assert _inventory(client) == before


def test_sync_goes_on_with_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=2)
    write_report(run, pictures=False)
    assert sync(run, _settings())
    client = _client(run)
    (sequence,) = _sequences(client)
    assert sequence.info.status == "RUNNING" and len(_children(client, sequence)) == 2
    write_run(tmp_path / "run")
    write_report(run, pictures=False)
    assert sync(run, _settings())
    (again,) = _sequences(client)
    assert again.info.run_id == sequence.info.run_id and again.info.status == "FINISHED"
    assert len(_children(client, again)) == len(client.search_model_versions()) == 4
    assert client.get_model_version_by_alias(NAME, "candidate").tags["archipelago.manifest"] == "4"

    other = write_run(tmp_path / "other", stages=1)  # same folder, hence the same database
    assert sync(other, _settings())
    assert len(_sequences(client)) == 2 and len(client.search_model_versions()) == 5


def test_interrupted_sync_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", stages=2)
    write_report(run, pictures=False)
    steps = ("log_model_artifacts", "log_outputs", "log_artifacts", "set_registered_model_alias")
    for step in steps:
        with monkeypatch.context() as patch:

            def fail(*args: Any, **kwargs: Any) -> None:
                raise OSError("the network went away")

            patch.setattr(MlflowClient, step, fail)
            assert not sync(run, _settings())
    assert sync(run, _settings())
    inventory = _inventory(_client(run))
    assert len(inventory["runs"]) == 3 and len(inventory["models"]) == 4, "groups and versions"
    assert len(inventory["versions"]) == 2 and len(inventory["lineage"]) == 3


def test_tracker_syncs_beside_the_job(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=1)
    tracker = Tracker(run, _settings())
    started = time.monotonic()
    tracker.poke()
    assert time.monotonic() - started < 1.0
    write_run(tmp_path / "run", stages=2)
    tracker.poke()
    assert tracker.close()
    (sequence,) = _sequences(_client(run))
    assert len(_children(_client(run), sequence)) == 2


def test_server_that_is_away_is_filled_in_later(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "run", stages=2)
    write_report(run, pictures=False)
    port = free_ports(1)[0]
    settings = _settings(f"http://127.0.0.1:{port}", timeout_s=2)
    environment, global_uri = dict(os.environ), mlflow.get_tracking_uri()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert not sync(run, settings)
    assert time.monotonic() - started < 10
    assert [record.name for record in caplog.records] == ["archipelago.pipeline.tracking.sync"]

    server(port)
    assert sync(run, settings)
    assert dict(os.environ) == environment and mlflow.get_tracking_uri() == global_uri
    client = MlflowClient(tracking_uri=settings.uri, registry_uri=settings.uri)
    inventory = _inventory(client)
    assert len(inventory["runs"]) == 3 and len(inventory["versions"]) == 2
    assert inventory["alias"] == {"candidate": "2", "newest": "2"}
    models = client.search_logged_models([_experiment(client)], "tags.`archipelago.task` = 'aid'")
    names = {entry.path for entry in client.list_logged_model_artifacts(models[0].model_id)}
    assert {"group.safetensors", "identity.safetensors", "task.json", "COMMIT"} <= names
    assert sync(run, settings) and _inventory(client) == inventory


@pytest.mark.timeout(600)  # a server that imports much
def test_ui_says_an_address_once_it_answers_and_takes_mlflow_down_with_it(
    tmp_path: Path,
) -> None:
    place = stored_run.copy(tmp_path / "it")
    (port,) = free_ports(1)
    words = [f"run_dir={place / 'run'}", f"port={port}", "browser=false"]
    page = f"http://127.0.0.1:{port}"
    with Driver(tmp_path / "log", words, job="ui") as driver:
        driver.when(lambda: page in driver.output().splitlines(), "MLflow answers")
        with urllib.request.urlopen(page, timeout=10) as answer:
            assert answer.status == 200
        assert driver.send(signal.SIGTERM) == 143, driver.output()
        assert driver.left() == []
