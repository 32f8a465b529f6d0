"""A run in the browser: its report, and MLflow with all runs beside it.

    python jobs/ui.py run_dir=/data/runs/first
    python jobs/ui.py run_dir=/data/runs/first port=5001 browser=false

MLflow is started here unless the run is tracked on a server; it runs until Ctrl-C.
Exit codes: 0 done, 2 a mistake of the user's, 143 stopped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.stopping import Signals
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE, UserError


class Own(Words):
    """What the view takes."""

    run_dir: str = Field(description="the folder of a run")
    port: int = Field(5000, ge=1, le=65535, description="of MLflow on this machine")
    browser: bool = Field(True, description="false = say the addresses, open nothing")


SETTINGS = False


@exit_codes("ui")
def main(arguments: Sequence[str]) -> int:
    """Open both; returns the exit code, or never where MLflow was started here.

    Raises:
        Stopped: by a signal.
        UserError: no run, or MLflow cannot be started.
    """
    from archipelago.pipeline.config import stored_settings
    from archipelago.pipeline.store import RunFolder
    from archipelago.pipeline.tracking.location import locate, of_run

    own, _ = read_words(arguments, Own, settings=False)
    console = Console(highlight=False, soft_wrap=True)
    run = RunFolder.open(own.run_dir)
    place, written = run.folder.local, run.folder.exists("report.html")
    pages = [(place / "report.html").as_uri()] if place is not None and written else []
    if not pages:
        console.print(
            f"{run.folder.shown('report.html')} is not on this machine, or not drawn before the end"
        )
    settings = stored_settings(run.read())
    tracked = of_run(run, settings.tracking)
    if not tracked.enabled:
        return _show(pages, own, console)
    where = locate(run, tracked)
    if where.view.startswith("http"):
        return _show([*pages, where.view], own, console)
    command = Path(sys.executable).parent / "mlflow"
    program = str(command) if command.exists() else shutil.which("mlflow")
    if program is None:
        raise UserError("mlflow: its command is not installed; pip install mlflow")
    words = [program, "ui", "--backend-store-uri", where.uri, "--port", str(own.port)]
    page = f"http://127.0.0.1:{own.port}"
    with Signals().listening(), subprocess.Popen(words) as server:
        try:
            _show(pages, own, console)
            if _answers(page, server):
                _show([page], own, console)
            server.wait()
        finally:
            server.terminate()
    raise UserError(f"port={own.port}: MLflow ended, see above; give another port if it is taken")


def _answers(page: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False where it ended instead."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{page}/health", timeout=2.0):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _show(pages: Sequence[str], own: Own, console: Console) -> int:
    for page in pages:
        console.print(page)
        if own.browser:
            webbrowser.open(page)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
