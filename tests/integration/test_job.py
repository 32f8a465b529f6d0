"""Real submitted jobs on an own head: environment, exit codes, stopping, nothing left behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from archipelago.actors.ray_head import RayHead, free_ports, is_free
from archipelago.jobs import demo
from tests.helpers import TINY, parquet_domain
from tests.running import IN_PROCESS

pytestmark = pytest.mark.timeout(300)

SAYS_WHERE = """
import os, sys, pipeline
from archipelago.pipeline.config import load
print("code at", os.path.dirname(pipeline.__file__))
print("steps", load(["training.steps=7"]).training.steps)
print("arguments", sys.argv[1:])
print("left out", [name for name in (".git", ".venv", "tests", "runs") if os.path.exists(name)])
"""
SAVES_STATE = """
import signal, sys, time
def stop(*_):
    print("state saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("running", flush=True)
time.sleep(120)
"""


def submit(head: RayHead, script: str, *arguments: str) -> tuple[Any, str]:
    client = head.jobs()
    job = client.submit_job(
        entrypoint=shlex.join([sys.executable, "-c", script, *arguments]),
        runtime_env={
            "working_dir": str(demo.ROOT),
            "env_vars": demo.job_environment(Console(file=io.StringIO())),
        },
    )
    return client, job


def whole_log(client: Any, job: str) -> str:
    out = io.StringIO()
    asyncio.run(demo.JobLog(client, job, Console(file=out)).show())
    return out.getvalue()


def wait_for_log(client: Any, job: str, word: str, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while word not in client.get_job_logs(job):
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.3)


def run(head: RayHead, script: str, *arguments: str) -> tuple[int, str]:
    client, job = submit(head, script, *arguments)
    log = whole_log(client, job)
    return demo.exit_code(client, job), log


def test_a_job_runs_its_own_copy_of_the_code(head: RayHead) -> None:
    code, log = run(head, SAYS_WHERE, "stream.order=[a,b]", "run_dir=/a b")
    assert code == 0
    assert "runtime_resources/working_dir_files" in log
    assert "steps 7" in log
    assert "arguments ['stream.order=[a,b]', 'run_dir=/a b']" in log
    assert "left out []" in log


def test_the_exit_code_of_the_driver_is_passed_on(head: RayHead) -> None:
    assert run(head, "raise SystemExit(3)")[0] == 3


def test_a_stopped_job_has_time_to_save_its_state(head: RayHead) -> None:
    client, job = submit(head, SAVES_STATE)
    wait_for_log(client, job, "running")
    client.stop_job(job)
    wait_for_log(client, job, "state saved")
    deadline = time.monotonic() + 60
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert demo.exit_code(client, job) == 143


def submit_sequence(head: RayHead, *overrides: str) -> tuple[int, str]:
    out = io.StringIO()
    code = demo.submit(head, overrides, Console(file=out))
    return code, out.getvalue()


@pytest.mark.slow
def test_the_sequence_as_a_submitted_job(head: RayHead, tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        parquet_domain(tmp_path / "domains", name, classes=2, train=20, test=8)
    places = ["stream=parquet", f"stream.root={tmp_path}/domains", f"run_dir={tmp_path}/run"]
    code, log = submit_sequence(head, *places, *TINY, *IN_PROCESS)
    assert code == 0, log
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "complete"
    assert report["tasks"] == ["ants", "bees"]
    assert "ants" in log and "Transfer/Average/Last" in log


def test_a_submitted_job_refuses_a_relative_run_dir(head: RayHead) -> None:
    code, log = submit_sequence(head, *TINY, "run_dir=runs/here")
    assert code == 2
    assert "run_dir=runs/here: a submitted job" in log
    assert "Traceback" not in log


def test_a_log_that_was_broken_off_goes_on_where_it_was() -> None:
    class Client:
        async def tail_job_logs(self, job: str) -> Any:
            for text in ("one ", "two ", "three"):
                yield text

    out = io.StringIO()
    log = demo.JobLog(Client(), "job", Console(file=out))  # type: ignore[arg-type]
    log.shown = len("one t")
    asyncio.run(log.show())
    asyncio.run(log.show())
    assert out.getvalue() == "wo three"


def test_a_head_ends_with_all_its_processes_and_no_others() -> None:
    with RayHead(logical_cpus=1, object_store_mib=100, dashboard_port=None) as head:
        started = head.processes()
        assert len(started) > 3
        assert os.getpid() not in started
        assert not is_free(int(head.address.rpartition(":")[2]))
    assert [pid for pid in started if _alive(pid)] == []
    assert not head.temp_dir.exists()
    head.stop()  # once more does no harm


def test_a_head_that_cannot_start_says_why_and_leaves_nothing(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head.address)  # what answers there is another one
    head = RayHead(logical_cpus=1, object_store_mib=1, dashboard_port=None)  # less than Ray accepts
    with pytest.raises(RuntimeError, match=r"ray start ended at once: .*memory"), head:
        pass
    assert head.processes() == []
    assert not head.temp_dir.exists()


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(5))) == 5


def test_the_demo_refuses_a_misspelt_setting_before_it_starts_anything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert demo.main(["training.stepz=3"]) == 2
    error = capsys.readouterr().err
    assert "training.stepz: unknown key; did you mean training.steps?" in error


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
