"""SIGKILL of a training worker and of an encoder: the run goes on, and learns the same groups."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from archipelago.actors.ray_head import RayHead
from tests.running import (
    DECODED_HERE,
    ENCODER,
    EVERY,
    ON_LOOPBACK,
    TRAINER,
    Driver,
    arguments,
    events,
    group_hashes,
    titled,
    training,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_killed_workers_are_replaced(
    head: RayHead, stream: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    run = tmp_path / "run"
    words = arguments(stream, run, ("amber",), DECODED_HERE, f"cluster.address={head.address}")
    with Driver(tmp_path / "log", words, ON_LOOPBACK) as driver:
        driver.when(lambda: training(run, "000-amber", 1, 2), "stage 0 has two checkpoints")
        for title in (TRAINER, ENCODER):
            (worker,) = titled(head.processes(), title)
            os.kill(worker, signal.SIGKILL)
        assert driver.code() == 0, driver.output()
        output = driver.output()
    assert group_hashes(run) == {"amber": undisturbed["amber"]}
    (first,) = [e for e in events(run, "stage-trained") if e["stage"] == 0]
    assert first["attempt"] == 1, "the stage was begun anew instead of its worker"
    assert first["curve"][0]["step"] > EVERY, "training began at the first step again"
    assert "stage 0 amber: a worker was lost, goes on after step" in output
