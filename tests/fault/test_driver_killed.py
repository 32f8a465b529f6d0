"""The driver is killed or stopped at several points: the same command ends with the same groups."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from archipelago.actors.ray_head import RayHead
from archipelago.jobs import demo
from archipelago.pipeline.store import RunFolder
from tests.running import (
    DECODED_HERE,
    EVERY,
    ON_LOOPBACK,
    WORKERS,
    Driver,
    arguments,
    events,
    group_hashes,
    titled,
    training,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ORDER = ("amber", "birch")
KILL = signal.SIGKILL
ENDS_S = 180.0  # until Ray's processes see that their driver is gone


def test_a_run_outlives_its_drivers(
    head: RayHead, stream: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    run = tmp_path / "run"
    words = arguments(stream, run, ORDER, DECODED_HERE)
    joined = [*words, f"cluster.address={head.address}"]

    def working() -> list[int]:
        return titled(head.processes(), *WORKERS)

    with Driver(tmp_path / "log", joined, ON_LOOPBACK) as driver:
        driver.when(lambda: training(run, "000-amber", 1), "stage 0 is being trained")
        assert driver.send(KILL) == -KILL
        wait_until(lambda: not working(), "its workers end with it", ENDS_S)
    assert group_hashes(run) == {}

    with Driver(tmp_path / "log", words) as driver:  # on an own local Ray
        driver.when(lambda: events(run, "stage-done"), "stage 0 is done")
        assert driver.send(signal.SIGTERM) == 143, driver.output()
        assert driver.left() == []
        assert driver.output().endswith("sequence: stopped; the same command continues\n")
        assert "Traceback" not in driver.output()
    assert RunFolder.open(run).journal.events()[-1]["reason"] == "SIGTERM"
    (first,) = events(run, "stage-trained")
    assert first["attempt"] == 2
    assert all(point["step"] > EVERY for point in first["curve"]), "checkpoints were not used"

    with Driver(tmp_path / "log", joined, ON_LOOPBACK) as driver:
        assert driver.code() == 0, driver.output()
    assert group_hashes(run) == undisturbed
    assert json.loads((run / "report.json").read_text())["status"] == "complete"
    assert [e["stage"] for e in events(run, "stage-done")] == [0, 1]
    assert not list(run.glob("train/*")), "checkpoints of done stages are left"
    wait_until(lambda: not working(), "its workers end with it", ENDS_S)


def test_a_stopped_job_is_taken_up_by_the_next_one(
    head: RayHead, stream: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    from ray.job_submission import JobStatus

    run = tmp_path / "run"
    client = head.jobs()
    words = arguments(stream, run, ORDER[:1], DECODED_HERE, "cluster.encode.num_workers=0")

    def submit() -> str:
        return client.submit_job(
            entrypoint=shlex.join([sys.executable, "jobs/sequence.py", *words]),
            runtime_env={
                "working_dir": str(demo.ROOT),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"},
            },
        )

    def ended(job: str) -> JobStatus:
        wait_until(lambda: client.get_job_status(job).is_terminal(), f"{job} ends")
        return client.get_job_status(job)

    job = submit()
    wait_until(lambda: training(run, "000-amber", 1), "stage 0 is being trained")
    started = time.monotonic()
    client.stop_job(job)
    assert ended(job) == JobStatus.STOPPED
    assert time.monotonic() - started < 45, "it was killed in the end"
    assert RunFolder.open(run).journal.events()[-1]["reason"] == "SIGTERM"
    assert "stopped; the same command continues" in client.get_job_logs(job)

    assert ended(again := submit()) == JobStatus.SUCCEEDED, client.get_job_logs(again)
    assert group_hashes(run) == {"amber": undisturbed["amber"]}
    (trained,) = events(run, "stage-trained")
    assert trained["attempt"] == 2
    assert all(point["step"] > EVERY for point in trained["curve"]), "checkpoints were not used"
