"""A run in an object store, on nodes that share no file system: real S3 over HTTP, real kills."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams.remote import NODE_CACHE
from tests.running import (
    TRAINER,
    Driver,
    arguments,
    children,
    group_hashes,
    titled,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TASKS = ["amber", "birch"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def bucket(server: str, stream: Path) -> str:
    """Address pattern of a bucket that holds the stream as `data`."""
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{server}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="islands")
    for file in stream.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "islands", f"data/{file.relative_to(stream)}")
    options = f"endpoint_override={server}&scheme=http&region=us-east-1"
    return f"s3://key:secret@islands/{{}}?{options}"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Any]:
    """Two nodes with caches of their own; the second has what trains."""
    from ray.cluster_utils import Cluster

    def node(name: str, **resources: float) -> dict[str, Any]:
        return {
            "num_cpus": 2,
            "object_store_memory": 100 * 2**20,
            "env_vars": {NODE_CACHE: str(tmp_path / name)},
            "resources": resources,
        }

    cluster = Cluster(
        initialize_head=True, head_node_args=node("head") | {"include_dashboard": False}
    )
    try:
        cluster.add_node(**node("other"))
        yield cluster
    finally:
        cluster.shutdown()


def test_nodes_without_a_common_disk_learn_together(
    two_nodes: Any, bucket: str, stream: Path, tmp_path: Path
) -> None:
    run = bucket.format("runs/first")
    words = arguments(
        bucket.format("data"),
        run,
        TASKS,
        f"cluster.address={two_nodes.address}",
        "cluster.train.num_workers=2",
        "cluster.train.num_cpus=1.25",
        "cluster.encode.num_cpus=0.25",
        "tracking=off",
    )
    own = {NODE_CACHE: str(tmp_path / "head")}
    with Driver(tmp_path / "log", words, own) as driver:
        raylets = [
            node.all_processes["raylet"][0].process.pid for node in two_nodes.list_all_nodes()
        ]
        folder = RunFolder(run, read_only=True).folder

        def trained() -> bool:
            time.sleep(0.5)  # it shares the server with the run
            return bool(folder.list("train/000-amber/attempt-1/checkpoint-"))

        driver.when(trained, "stage 0 is being trained")
        workers = [titled(children(pid), TRAINER) for pid in raylets]
        assert [len(found) for found in workers] == [1, 1]
        os.kill(workers[1][0], signal.SIGKILL)
        assert driver.code() == 0, driver.output()
    for name in ("head", "other"):
        copies = [entry for entry in (tmp_path / name / "images").iterdir() if entry.is_dir()]
        assert len(copies) >= len(TASKS), "each node copied what it read"
    alone = tmp_path / "alone"
    same = ("cluster.train.num_workers=2", "tracking=off", f"cluster.address={two_nodes.address}")
    with Driver(tmp_path / "log", arguments(stream, alone, TASKS, *same), own) as driver:
        assert driver.code() == 0, driver.output()
    assert group_hashes(run) == group_hashes(alone)
