"""The demo: an own local Ray, and on it a submitted job that learns the embedded stream.

    make demo
    make demo ARGS="training.steps=100 --keep"

Words with `=` are settings for `jobs/sequence.py`; `--keep` leaves Ray and its dashboard running at
the end until Ctrl-C. The demo's exit code is that of the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.ray_head import RayHead
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import EXIT_FAILURE, EXIT_STOPPED
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.location import locate

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
STOP_WAIT_S = 120  # from SIGTERM to SIGKILL when the job is stopped: time to save the state
DEFAULTS = [  # short, for two cores: a fair measurement takes the defaults of `jobs/sequence.py`
    "stream=atlas",
    "stream.order=[digits,glyphs,shapes,terrain,textures]",
    "stream.options.train=480",
    "identifier=cascade",  # with mllm-tiny, which describes each domain
    "training.steps=40",
    "training.validate_every=20",
    "evaluation.references=[ridge_per_task,finetune]",
    "evaluation.references_in=driver",
    f'run_dir="{ROOT / "runs" / "demo"}"',
]


@exit_codes("demo")
def main(arguments: Sequence[str]) -> int:
    """Run the demo with further overrides; returns the exit code."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the head listens on this machine only
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)
    overrides = [*DEFAULTS, *(a for a in arguments if a != "--keep")]
    settings = load(overrides)
    try:
        with contextlib.ExitStack() as stack:
            head = RayHead(settings.cluster.logical_cpus, settings.cluster.object_store_mib)
            with console.status("Starting a local Ray ..."):
                stack.enter_context(head)
            stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # while Ray is ended
            console.print(f"Ray's dashboard: [bold]{head.dashboard}[/bold]")
            code = submit(head, overrides, console)
            say_where(settings, code, console)
            if "--keep" in arguments:
                console.print(f"Ray is kept at {head.dashboard} until Ctrl-C.")
                signal.pause()
            return code
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except RuntimeError as error:
        Console(stderr=True, highlight=False).print(f"demo: {error}", markup=False)
        return EXIT_FAILURE


def submit(head: RayHead, overrides: Sequence[str], console: Console) -> int:
    """Submit `jobs/sequence.py`, show its output, and return its exit code.

    The first Ctrl-C stops the job, which then saves its state; the second one is not waited for.
    """
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what is uploaded is of no interest here
    client = head.jobs()
    entrypoint = [sys.executable, "jobs/sequence.py", *overrides]
    job = client.submit_job(
        entrypoint=shlex.join(entrypoint),
        runtime_env={"working_dir": str(ROOT), "env_vars": job_environment(console)},
    )
    log = JobLog(client, job, console)
    try:
        asyncio.run(log.show())
    except KeyboardInterrupt:
        console.print("Stopping the job; its state is kept ...")
        client.stop_job(job)
        asyncio.run(log.show())
    return exit_code(client, job)


def job_environment(console: Console) -> dict[str, str]:
    """What a job of the demo needs to know about the terminal and about being stopped."""
    width = str(shutil.get_terminal_size((100, 24)).columns)
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "COLUMNS": width}
    if console.is_terminal:
        environment["FORCE_COLOR"] = "1"
    return environment


class JobLog:
    """Passes a job's log on to a console, each character once."""

    def __init__(self, client: JobSubmissionClient, job: str, console: Console) -> None:
        self.client, self.job, self.console = client, job, console
        self.shown = 0

    async def show(self) -> None:
        """What was not shown yet and what comes, until the job ends; can be broken off."""
        position = 0
        async for text in self.client.tail_job_logs(self.job):
            fresh = text[max(0, self.shown - position) :]
            position += len(text)
            self.shown = max(self.shown, position)
            self.console.file.write(fresh)
            self.console.file.flush()


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """The exit code of a job that ended: that of its driver where there is one."""
    from ray.job_submission import JobStatus

    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED or info.driver_exit_code in (-signal.SIGTERM, EXIT_STOPPED):
        return EXIT_STOPPED
    return info.driver_exit_code or EXIT_FAILURE


def say_where(settings: Settings, code: int, console: Console) -> None:
    """Where a person looks next."""
    report = Path(settings.run_dir or "") / "report.html"
    if report.exists():
        console.print(f"Report: [bold]{report.as_uri()}[/bold]", soft_wrap=True)
    if settings.tracking.enabled and settings.run_dir:
        view = locate(RunFolder(settings.run_dir, read_only=True), settings.tracking).view
        beside = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
        command = f"{beside}{view.removeprefix('mlflow')}" if view.startswith("mlflow ui") else view
        console.print(f"MLflow: [bold]{command}[/bold]", soft_wrap=True)
    if code == EXIT_STOPPED:
        console.print("The job was stopped; the same command continues it.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
