"""Batch prediction on a real Ray: bad files, kills, several nodes, an object store."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from archipelago.jobs import predict
from archipelago.pipeline.learned import LearnedModel
from tests.helpers import png
from tests.running import Driver, children, titled
from tests.unit import stored_run
from tests.unit.tiny_prediction import answers, fill_photos, same, table_of

ACTOR = "ray::MapWorker(MapBatches(AnswerActor))"  # as Ray titles it
UNIT = 600  # images of a row group, and so of a unit


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored run, its test images beside it as `images.npy`."""
    return stored_run.copy(tmp_path_factory.mktemp("stored") / "it")


def words_of(place: Path, given: Path | str, output: Path | str, *more: str) -> list[str]:
    return [f"run_dir={place / 'run'}", f"input={given}", f"output={output}", *more]


def test_on_ray_it_is_what_the_model_answers(place: Path, tmp_path: Path, local_ray: str) -> None:
    photos = fill_photos(tmp_path / "photos", np.load(place / "images.npy"))
    bad = {"broken.jpg": b"no image", "deep/empty.png": b"", "cut.png": png((1, 2, 3))[:70]}
    for name, data in bad.items():
        (photos / name).write_bytes(data)
    # One large row group and units of no more than 1024: one task, several blocks.
    colours = [png((n % 251, n % 83, n % 13), size=8) for n in range(1100)]
    table_of([*colours, b"no image"], photos / "t.parquet", rows=5000)
    output = tmp_path / "out"
    assert predict.main(words_of(place, photos, output, "cluster.data.num_workers=2")) == 0
    found = answers(output)
    assert len(found) == 12 + len(bad) + 1101
    assert {p for p, row in found.items() if row["error"]} == {*bad, "t.parquet#1100"}
    assert len(list(output.glob("t-*.parquet"))) == 2
    model = LearnedModel.open(place / "run")
    for path in ("001.png", "deep/er/010.png"):
        same(found[path], model.answer([photos / path])[0])
    for number in (0, 600, 1099):
        same(found[f"t.parquet#{number}"], model.answer([colours[number]])[0])


def test_a_model_that_cannot_be_opened_is_told_in_one_line(
    place: Path, tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = stored_run.copy(tmp_path / "it")
    photos = fill_photos(tmp_path / "photos", np.load(place / "images.npy"))
    weights = next((copy / "run" / "groups").glob("*/identity.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    for more in ((), ("cluster.data.num_workers=0",)):
        assert predict.main(words_of(copy, photos, tmp_path / "out", *more)) == 2
        error = capsys.readouterr().err
        assert "identity.safetensors" in error and error.startswith("predict: ")
        assert error.count("\n") == 1


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


def test_images_and_answers_may_lie_in_s3(
    place: Path, tmp_path: Path, local_ray: str, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{server}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="photos")
    photos = fill_photos(tmp_path / "photos", np.load(place / "images.npy"))
    table_of([png((9, 99, 9), 16)] * 3, photos / "t.parquet")
    (photos / "deep" / "broken.png").write_bytes(b"no image")
    for file in photos.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "photos", f"in/a b/{file.relative_to(photos)}")
    options = f"endpoint_override={server}&scheme=http&region=us-east-1"
    there, output = (
        f"s3://key:secret@photos/{name}?{options}" for name in ("in/a%20b", "answers/1")
    )
    assert predict.main(words_of(place, there, output)) == 0
    system, _ = pafs.FileSystem.from_uri(output)
    found = answers("photos/answers/1", system)
    assert predict.main(words_of(place, photos, tmp_path / "out")) == 0
    here = answers(tmp_path / "out")
    assert found.keys() == here.keys() and len(found) == 12 + 3 + 1
    assert {p: row["label"] for p, row in found.items()} == {
        p: row["label"] for p, row in here.items()
    }
    listed = system.get_file_info(pafs.FileSelector("photos/answers/1"))
    assert predict.main(words_of(place, there, output)) == 0
    again = system.get_file_info(pafs.FileSelector("photos/answers/1"))
    assert {i.path: i.mtime for i in listed if i.is_file} == {
        i.path: i.mtime for i in again if i.is_file
    }, "nothing is written twice"
    state = system.open_input_file("photos/answers/1/_prediction/state.json").read()
    assert b"secret" not in state
    capsys.readouterr()
    assert predict.main(words_of(place, there, output, "top_k=2")) == 2
    error = capsys.readouterr().err
    assert "s3://photos/answers/1: was made with top_k=5, not top_k=2" in error


def many(file: Path, count: int) -> Path:
    """A table of images, in row groups of which no two fit into a unit."""
    rng = np.random.default_rng(0)
    data = [png(tuple(c), 32) for c in rng.integers(0, 256, (count, 3)).tolist()]
    return table_of(data, file, rows=UNIT)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["cluster.encode.num_workers=0", "cluster.object_store_mib=200"])
def test_killed_the_same_command_ends_with_each_image_once(
    place: Path, tmp_path: Path, where: str
) -> None:
    images = many(tmp_path / "many.parquet", 8 * UNIT)
    output = tmp_path / "out"
    words = words_of(place, images, output, where, "batch_size=8")

    def written() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in output.glob("*.parquet")}

    with Driver(tmp_path / "log", words, job="predict") as driver:
        driver.when(lambda: len(written()) >= 2, "two of eight files are written")
        assert driver.send(signal.SIGKILL) == -signal.SIGKILL
        # The next command does not wait until Ray has noticed and its workers have gone.
        before = written()
        assert 2 <= len(before) < 8
        with Driver(tmp_path / "log2", words, job="predict") as again:
            # Until then the actors of the one before may write on.
            again.when(lambda: "answered before" in again.output(), "it has counted")
            begun = written()
            again.when(lambda: len(written()) > len(begun), "it goes on")
            assert again.send(signal.SIGTERM) == 143, again.output()
            assert "stopped; the same command continues" in again.output()
            assert again.left() == []
    with Driver(tmp_path / "log", words, job="predict") as driver:
        assert driver.code() == 0, driver.output()
        assert "4,800 images are answered" in driver.output()
    after = written()
    assert {name: after[name] for name in before} == before, "what was written is not done again"
    found = answers(output)
    assert found.keys() == {f"many.parquet#{number}" for number in range(8 * UNIT)}
    assert not any(row["error"] for row in found.values())
    assert not list(output.glob(".*")), "no temporary file is left"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_actor_loses_no_image(place: Path, tmp_path: Path) -> None:
    images = many(tmp_path / "many.parquet", 5 * UNIT)
    output = tmp_path / "out"
    words = words_of(place, images, output, "cluster.object_store_mib=200", "batch_size=8")
    with Driver(tmp_path / "log", words, job="predict") as driver:
        driver.when(lambda: list(output.glob("*.parquet")), "a file is written")
        (actor,) = titled(driver.processes(), ACTOR)
        os.kill(actor, signal.SIGKILL)
        assert driver.code() == 0, driver.output()
    assert len(answers(output)) == 5 * UNIT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_answer_together(place: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    images = many(tmp_path / "many.parquet", 8 * UNIT)
    output = tmp_path / "out"
    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        # Two actors of 1.25 CPUs: one a node.
        words = words_of(
            place,
            images,
            output,
            f"cluster.address={cluster.address}",
            "batch_size=8",
            "cluster.encode.num_workers=2",
            "cluster.encode.num_cpus=1.25",
        )
        with Driver(tmp_path / "log", words, job="predict") as driver:
            driver.when(lambda: list(output.glob("*.parquet")), "a file is written")
            raylets = [
                node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()
            ]
            found = [len(titled(children(pid), ACTOR)) for pid in raylets]
            assert driver.code() == 0, driver.output()
        assert found == [1, 1]
    finally:
        cluster.shutdown()
    assert len(answers(output)) == 8 * UNIT
