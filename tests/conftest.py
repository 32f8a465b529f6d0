"""What all tests share: a quiet, closed environment and one local Ray for the session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from archipelago.actors.ray_head import RayHead
    from archipelago.pipeline.store import RunFolder
    from tests.unit.tiny_run import World

# Set before anything imports Ray, MLflow or torch: they read these once.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "90",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "OMP_WAIT_POLICY": "PASSIVE",  # two workers and their processes share two cores
    "OPENBLAS_NUM_THREADS": "1",  # its threads spin: on busy cores a small solve takes seconds
}
os.environ.update(ENVIRONMENT)
os.environ.pop("RAY_ADDRESS", None)

LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 200 * 1024**2


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """One local Ray with 8 logical CPUs for the whole session; the value is its address."""
    import ray

    # Sockets live below it, and their paths must stay under 108 characters.
    temp_dir = tempfile.mkdtemp(prefix="arc-", dir="/tmp")
    context = ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        _temp_dir=temp_dir,
        log_to_driver=False,
    )
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def head() -> Iterator[RayHead]:
    """One Ray head with dashboard for the session: submit jobs to it, or join it by address."""
    from archipelago.actors.ray_head import RayHead

    with RayHead(logical_cpus=4, object_store_mib=200, dashboard_port=None) as head:
        yield head


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three small domains: amber (with some rows that are no images), birch, cedar."""
    from tests.running import write_stream

    return write_stream(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="session")
def undisturbed(stream: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the groups of amber and birch, learned in this process and without Ray."""
    from archipelago.jobs import sequence
    from tests.running import IN_PROCESS, arguments, group_hashes

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert sequence.main(arguments(stream, run, ("amber", "birch"), *IN_PROCESS)) == 0
    return group_hashes(run)


@pytest.fixture(scope="session")
def served_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four colour domains and a random CLIP."""
    from tests.unit.tiny_run import make_world

    return make_world(tmp_path_factory.mktemp("served-world"))


@pytest.fixture(scope="session")
def served_run(served_world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """They are learned, and the newest model is published; copy it before you change it."""
    from tests.unit.tiny_run import TASKS
    from tests.unit.tiny_serving import learned_run, point

    run = learned_run(served_world, tmp_path_factory.mktemp("served") / "run")
    point(run, len(TASKS))
    return run


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """One torch thread in this process: results and times do not depend on the machine."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
