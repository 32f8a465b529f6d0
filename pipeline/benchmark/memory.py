"""Peak memory of this process and those it started, while something runs (Linux; else unknown)."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from types import TracebackType

PROC = Path("/proc")
EVERY_S = 0.5


class PeakMemory:
    """A context manager that samples the proportional memory of the process tree.

    Memory that several processes share is counted once (PSS). Processes on other nodes of a
    cluster are not seen.

    Attributes:
        mib: the largest sample, MiB; None where the system does not say.
        before: the first one.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.mib: float | None = None
        self.before: float | None = None
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Begin to look."""
        gc.collect()  # what ran before is no part of this
        self._sample()
        self.before = self.mib
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A last look."""
        self._over.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        found = [_pss(pid) for pid in _tree(os.getpid())]
        known = [value for value in found if value is not None]
        if known:
            self.mib = max(self.mib or 0.0, sum(known) / 1024.0)


def _tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def _pss(pid: int) -> float | None:
    """Proportional set size in KiB."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), None)
