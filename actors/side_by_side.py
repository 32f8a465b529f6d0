"""Several processes at a time, each with a log of its own; a signal stops them all in order."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from archipelago.actors.stopping import Signals
from archipelago.pipeline.errors import EXIT_DONE, EXIT_LOCKED, EXIT_USER, LockedError, UserError

log = logging.getLogger("archipelago")

POLL_S = 0.2
THREADS = "OMP_NUM_THREADS"


def run_side_by_side(
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    threads: int,
    on_done: Callable[[str], None],
) -> None:
    """Run commands until all are done or one fails; those under way then end in their own time.

    Args:
        commands: by what they are called.
        at_once: how many run at a time.
        threads: that each may use for products of matrices.
        on_done: called with the name of each that ended well.

    Raises:
        UserError: one ended for a mistake of the user's; in its words.
        LockedError: another process holds what one needs.
        RuntimeError: one failed; its log is named.
        Stopped: SIGTERM or Ctrl-C; all were told, and have ended.
    """
    logs = Path(tempfile.mkdtemp(prefix="archipelago-side-"))
    waiting, running = deque(commands.items()), dict[str, subprocess.Popen[bytes]]()
    failed: tuple[str, int] | None = None
    environment = os.environ | {THREADS: str(threads)}
    with Signals().listening():
        try:
            while running or (waiting and failed is None):
                while waiting and failed is None and len(running) < at_once:
                    name, command = waiting.popleft()
                    with _log(logs, name).open("wb") as file:
                        running[name] = subprocess.Popen(
                            command,
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=file,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,  # a Ctrl-C in the terminal is passed on once
                        )
                    log.info("%s begins; it writes to %s", name, _log(logs, name))
                time.sleep(POLL_S)
                for name, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[name]
                    if code == EXIT_DONE:
                        on_done(name)
                    else:
                        failed = failed or (name, code)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if failed is not None:
        raise _error(*failed, _log(logs, failed[0]))


def _log(logs: Path, name: str) -> Path:
    return logs / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.log"


def _error(name: str, code: int, path: Path) -> Exception:
    """What a process that ended with a code other than 0 has to say."""
    said = path.read_text(errors="replace").strip().splitlines() or [""]
    words = re.sub(r"^[a-z_]+: ", "", said[-1])
    if code == EXIT_USER:
        return UserError(words)
    if code == EXIT_LOCKED:
        return LockedError(words)
    return RuntimeError(f"{name} ended with exit code {code}: {path}")
