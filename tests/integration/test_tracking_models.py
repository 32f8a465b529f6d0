"""Model versions in MLflow load and answer in another process, and copy nothing of a run."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from archipelago.actors.ray_head import free_ports
from archipelago.jobs import forget
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking import locate, sync
from archipelago.pipeline.tracking.aliases import note_serving
from archipelago.pipeline.tracking.client import connected
from tests.running import ROOT
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import copy_run, point, test_images

SETTINGS = TrackingSettings()
NEWEST = "models:/archipelago@newest"
LOADING = """
import json, pathlib, sys
import mlflow, numpy, pandas
images = sys.argv[1:]
read = [pathlib.Path(name).read_bytes() for name in images]
forms = {
    "bytes": lambda: pandas.DataFrame({"image": read}),
    "paths": lambda: images,
    "array": lambda: numpy.array(read, dtype=object),
}
models = {}
for asked in json.loads(sys.stdin.read()):
    uri, config = asked.get("uri", "models:/archipelago@newest"), asked.get("config")
    if uri not in models or config:
        models[uri] = mlflow.pyfunc.load_model(uri, model_config=config)
    given = forms[asked.get("form", "bytes")]()
    said = models[uri].predict(given, params=asked.get("params"))
    sys.stdout.write(said.to_json(orient="records") + "\\n")
"""


def _client(run: RunFolder) -> MlflowClient:
    uri = locate(run, SETTINGS).uri
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _environment(run: RunFolder) -> dict[str, str]:
    where = os.environ | {"MLFLOW_TRACKING_URI": locate(run, SETTINGS).uri, "OMP_NUM_THREADS": "1"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # uvicorn
    return where | {"PYTHONPATH": str(ROOT), "PATH": programs}


def _load(run: RunFolder, images: list[str], *asked: dict[str, Any]) -> list[Any]:
    """What versions say in another process, asked one question after another."""
    found = subprocess.run(
        [sys.executable, "-c", LOADING, *images],
        input=json.dumps(asked or [{}]),
        env=_environment(run),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.fixture(scope="module")
def pictures(served_world: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Test images of two domains, as files."""
    place = tmp_path_factory.mktemp("pictures")
    arrays = np.concatenate([test_images(served_world, task, 2) for task in TASKS[:2]])
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(place / f"{number}.png")
    return [str(place / f"{number}.png") for number in range(len(arrays))]


@pytest.fixture(scope="module")
def synced(served_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = copy_run(served_run, tmp_path_factory.mktemp("versions") / "run")
    assert sync(run, SETTINGS)
    return run


def _expected(answers: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "label": a.classes[0][0],
            "probability": a.classes[0][1],
            "domain": a.task,
            "unseen": a.unseen,
        }
        for a in answers
    ]


def _same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    close = [f.pop("probability") for f in found], [w.pop("probability") for w in wanted]
    return found == wanted and close[0] == pytest.approx(close[1], abs=1e-5)


def test_versions_answer_as_the_learned_model_does(synced: RunFolder, pictures: list[str]) -> None:
    assert note_serving(synced, SETTINGS)
    names = {
        v.tags["archipelago.manifest"]: f"models:/archipelago/{v.version}"
        for v in _client(synced).search_model_versions()
    }
    forms = [{"form": form} for form in ("bytes", "paths", "array")]
    chosen = ["a dog", "a cat"]
    *same, top, open_words, first, served = _load(
        synced,
        pictures,
        *forms,
        {"params": {"task": "boats", "top_k": 3}},
        {"params": {"candidates": chosen}},
        {"uri": names["1"]},
        {"uri": "models:/archipelago@serving"},
    )
    model = LearnedModel.open(synced.uri)
    for rows in (*same, served):
        assert _same(rows, _expected(model.answer(pictures)))
    for row, answer in zip(top, model.answer(pictures, task="boats", top_k=3), strict=True):
        assert row["domain"] == "boats" and not row["unseen"]
        assert row["labels"] == [name for name, _ in answer.classes] and len(row["labels"]) == 3
        assert row["probabilities"] == pytest.approx([p for _, p in answer.classes], abs=1e-5)
    assert {row["label"] for row in open_words} <= set(chosen)
    assert _same(open_words, _expected(model.answer(pictures, candidates=chosen)))
    assert _same(first, _expected(LearnedModel.open(synced.uri, 1).answer(pictures)))


def test_groups_are_stored_once_and_versions_only_refer_to_them(synced: RunFolder) -> None:
    root = Path(locate(synced, SETTINGS).artifacts.removeprefix("file://"))  # type: ignore[union-attr]
    assert len(list(root.rglob("group.safetensors"))) == len(TASKS)
    assert len(list(root.rglob("basis.safetensors"))) == 1
    assert len(list(root.rglob("MLmodel"))) == len(TASKS)
    for version in root.rglob("MLmodel"):
        assert sum(file.stat().st_size for file in version.parent.rglob("*")) < 40_000


def test_without_the_run_folder_mlflow_itself_gives_the_groups(
    served_run: RunFolder, pictures: list[str], tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    assert sync(run, SETTINGS)
    wanted = _expected(LearnedModel.open(run.uri).answer(pictures))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    name = RunFolder(tmp_path / "elsewhere").read()["config"]["backbone"]["name"]
    shutil.copytree(name.removeprefix("local-dir:"), tmp_path / "clip")
    moved = {"config": {"backbone": f"local-dir:{tmp_path}/clip"}}
    for rows in _load(run, pictures, {}, moved):
        assert _same(rows, [dict(row) for row in wanted])


def test_a_version_of_an_earlier_release_is_replaced(served_run: RunFolder, tmp_path: Path) -> None:
    run = copy_run(served_run, tmp_path / "run")
    assert sync(run, SETTINGS)
    with connected(locate(run, SETTINGS), SETTINGS) as client:
        (old,) = [
            v for v in client.search_model_versions() if v.tags["archipelago.manifest"] == "2"
        ]
        where = client.get_run(old.run_id).info.experiment_id
        (group,) = client.search_logged_models([where], f"tags.`archipelago.task` = '{TASKS[1]}'")
        source = f"models:/{group.model_id}"
        client.delete_model_version("archipelago", old.version)
        client.create_model_version("archipelago", source, tags=old.tags)
        assert sync(run, SETTINGS)
        versions = client.search_model_versions()
    assert sorted(v.tags["archipelago.manifest"] for v in versions) == ["1", "2", "3", "4"]
    assert source not in {v.source for v in versions}


def test_nothing_of_an_erased_domain_is_left_and_the_rest_answers(
    served_run: RunFolder, pictures: list[str], tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    point(run, len(TASKS))
    assert sync(run, SETTINGS)
    gone = TASKS[-1]
    assert forget.main([f"run_dir={run.uri}", f"task={gone}", "erase=true"]) == 0
    root = Path(locate(run, SETTINGS).artifacts.removeprefix("file://"))  # type: ignore[union-attr]
    holding = [f for f in root.rglob("*") if f.is_file() and gone.encode() in f.read_bytes()]
    shown = {"run.json", "confusion.json"}  # its name in settings and in other stages' figures
    assert {file.name for file in holding} <= shown
    assert len(list(root.rglob("MLmodel"))) == len(TASKS) == len(list(root.rglob("conda.yaml")))
    versions = {v.tags["archipelago.manifest"] for v in _client(run).search_model_versions()}
    assert versions == {"1", "2", "3", "5"}
    (rows,) = _load(run, pictures)
    assert _same(rows, _expected(LearnedModel.open(run.uri).answer(pictures)))


def test_mlflow_serves_it_and_names_mistakes_in_one_line(
    synced: RunFolder, pictures: list[str], tmp_path: Path
) -> None:
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", NEWEST, "-p", str(port)]
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [*command, "--env-manager", "local"],
        cwd=tmp_path,
        env=_environment(synced),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )

    def ask(document: dict[str, Any]) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(document).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    try:
        deadline = time.monotonic() + 200
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        texts = [base64.b64encode(Path(name).read_bytes()).decode() for name in pictures]
        wanted = _expected(LearnedModel.open(synced.uri).answer(pictures))
        code, told = ask({"inputs": texts})
        assert code == 200 and _same(told["predictions"], [dict(w) for w in wanted])
        split = {"columns": ["image"], "data": [[f"data:image/png;base64,{t}"] for t in texts]}
        code, told = ask({"dataframe_split": split, "params": {"task": "boats", "top_k": 2}})
        assert code == 200 and [len(row["labels"]) for row in told["predictions"]] == [2] * 4
        code, told = ask({"inputs": texts[:1], "params": {"task": "nobody"}})
        assert code == 400 and "task=nobody: is not learned" in told["message"]
        code, told = ask({"inputs": pictures[:1]})
        assert code == 400 and "not an image in base64" in told["message"], "no files of the server"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def test_any_form_of_an_image_is_taken(synced: RunFolder, pictures: list[str]) -> None:
    """In this process, for what JSON cannot hold."""
    from archipelago.pipeline.export.inputs import picture

    array = np.zeros((4, 4, 3), np.uint8)
    assert picture(array, 0) is array and picture(b"x", 0) == b"x"
    assert picture(pictures[0], 0) == pictures[0]
    assert picture("data:image/png;base64,aGVs\nbG8=", 0) == b"hello"
    assert picture("missing.png", 0) == "missing.png", "the model says that it cannot be read"
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    assert picture(base64.b64encode(file.getvalue()).decode(), 0) == file.getvalue()
