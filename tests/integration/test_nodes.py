"""Two simulated nodes: workers are spread over them, and what cannot fit is refused at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archipelago.actors.preflight import check_resources
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import ClusterSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import load as load_tensors
from tests.running import (
    DECODED_HERE,
    IN_PROCESS,
    TRAINER,
    Driver,
    arguments,
    children,
    group_hashes,
    titled,
    training,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NODE_CPUS = 2
# Two training workers want 2.5 CPUs: more than one node has, less than both.
SPREAD = (
    "cluster.train.num_workers=2",
    "cluster.train.num_cpus=1.25",
    "cluster.encode.num_cpus=0.25",
)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": NODE_CPUS, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=100 * 2**20)
        yield cluster
    finally:
        cluster.shutdown()


def test_two_workers_on_two_nodes_train_one_group_for_two_domains(
    two_nodes: Any, stream: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    joint = (
        "method=trge_ase",
        "experts.preset=null",
        "experts.shared_count=1",
        "stream.stages=[[amber,birch]]",
    )
    words = arguments(
        stream,
        run,
        ["amber", "birch"],
        *SPREAD,
        *joint,
        DECODED_HERE,
        f"cluster.address={two_nodes.address}",
    )
    with Driver(tmp_path / "log", words) as driver:
        driver.when(lambda: training(run, "000-amber+birch", 1), "stage 0 is being trained")
        raylets = [
            node.all_processes["raylet"][0].process.pid for node in two_nodes.list_all_nodes()
        ]
        assert [len(titled(children(pid), TRAINER)) for pid in raylets] == [1, 1]
        assert driver.code() == 0, driver.output()
        assert driver.output().count("step 24/24") == 1, "rank 0 alone speaks"
    folder = RunFolder.open(run)
    (ref,) = folder.groups.list()
    folder.groups.verify(ref)
    group = load_tensors(folder.groups.read(ref, "group.safetensors"), "group")
    assert all(bool(t.isfinite().all()) for t in group.values() if t.is_floating_point())
    report = json.loads((run / "report.json").read_text())
    assert report["status"] == "complete"
    assert report["stages"] == [["amber", "birch"]]
    for learned, before in zip(report["matrix"][0], report["zero_shot"], strict=True):
        assert learned > before, "nothing was learned"


def test_two_lanes_on_two_nodes_train_stages_side_by_side(
    two_nodes: Any, stream: Path, tmp_path: Path
) -> None:
    order, alone = ["amber", "birch"], ("method=lora_per_task", DECODED_HERE)
    lanes = ("cluster.train.lanes=2", "cluster.train.num_cpus=1.25", "cluster.encode.num_cpus=0.25")
    there = (*alone, *lanes, "training.steps=30", f"cluster.address={two_nodes.address}")
    with Driver(tmp_path / "log", arguments(stream, tmp_path / "two", order, *there)) as driver:

        def both() -> bool:
            return all(training(tmp_path / "two", stage, 1) for stage in ("000-amber", "001-birch"))

        driver.when(both, "both stages are being trained")
        raylets = [
            node.all_processes["raylet"][0].process.pid for node in two_nodes.list_all_nodes()
        ]
        assert [len(titled(children(pid), TRAINER)) for pid in raylets] == [1, 1]
        assert driver.code() == 0, driver.output()
    here = (*alone, "training.steps=30", *IN_PROCESS)
    with Driver(tmp_path / "log-1", arguments(stream, tmp_path / "one", order, *here)) as driver:
        assert driver.code() == 0, driver.output()
    assert group_hashes(tmp_path / "two") == group_hashes(tmp_path / "one")


def test_a_run_that_fits_nowhere_is_refused(two_nodes: Any, stream: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    large = ("cluster.train.num_cpus=3", f"cluster.address={two_nodes.address}")
    with Driver(tmp_path / "log", arguments(stream, run, ["amber"], *large)) as driver:
        assert driver.code() == 2, driver.output()
        assert driver.output() == (
            "sequence: cluster.train.num_cpus: one worker wants 3 CPU, the largest node has 2\n"
        )
    assert not (run / "run.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("cluster.train.num_workers=16",),
            "cluster: the run holds 8.75 CPU at once (train 8 + encode 0.5 + data 0.25), the"
            " cluster has 8; lower cluster.*.num_cpus or num_workers, or add nodes",
        ),
        (
            ("cluster.train.num_gpus=1",),
            "cluster: the run holds 1 GPU at once (train 1), the cluster has 0; lower"
            " cluster.*.num_gpus or num_workers, or add nodes",
        ),
        (("cluster.train.num_cpus=7.25",), None),
    ],
)
def test_what_a_run_holds_at_once_is_added_up(
    local_ray: str, overrides: tuple[str, ...], message: str | None
) -> None:
    cluster: ClusterSettings = load(overrides).cluster
    if message is None:
        check_resources(cluster)
        return
    with pytest.raises(UserError) as refusal:
        check_resources(cluster)
    assert str(refusal.value) == message
