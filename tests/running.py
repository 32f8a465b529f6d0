"""Runs of `jobs/sequence.py` from outside: start, watch, disturb and compare them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archipelago.pipeline.store import RunFolder
from tests.helpers import TINY, parquet_domain

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
STEPS, EVERY = 12, 3
# How Ray titles the processes of a run.
TRAINER, ENCODER = "ray::RayTrainWorker", "ray::Encoder"
WORKERS = (TRAINER, ENCODER, "ray::TrainController", "ray::PlacementGroupCleaner")
# Numbers that do not depend on how many cores are free: hashes of groups are compared.
EXACT = (
    "backbone.attention=math",
    "backbone.precision=fp32",
    "cluster.train.threads=1",
    "cluster.encode.threads=1",
)
IN_PROCESS = (
    "cluster.train.num_workers=0",
    "cluster.encode.num_workers=0",
    "cluster.data.num_workers=0",
)
# Images are decoded by the driver, where a test is not about that.
DECODED_HERE = "cluster.data.num_workers=0"
# A `RayHead` is on loopback only, where Ray otherwise takes 127.0.0.1 for this machine's name.
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
BAD_ROWS = {"train": (b"", b"no image at all", None), "test": (b"\x89PNG\r\n\x1a\ncut off",)}


def write_stream(root: Path) -> Path:
    """Domains amber, birch, cedar; some rows of amber, at the end of its files, are no images."""
    for name in ("amber", "birch", "cedar"):
        parquet_domain(root, name, classes=3, train=24, test=8, size=64)
    about = json.loads((root / "amber" / "domain.json").read_text())
    for split, bad in BAD_ROWS.items():
        file = root / "amber" / f"{split}.parquet"
        table = pq.read_table(file)
        images = table["image"].to_pylist() + [{"bytes": data, "path": "bad"} for data in bad]
        labels = table["label"].to_pylist() + [0] * len(bad)
        pq.write_table(pa.table({"image": images, "label": labels}), file)
        about["splits"][split] = len(labels)
    (root / "amber" / "domain.json").write_text(json.dumps(about))
    return root


def arguments(
    stream: Path | str, run_dir: Path | str, order: Sequence[str], *more: str
) -> list[str]:
    """The contract's command line for a run of seconds; `more` comes last."""
    return [
        "stream=parquet",
        f"stream.root={stream}",
        f"stream.order=[{','.join(order)}]",
        "method=trge",
        "identifier=prototype",
        f"run_dir={run_dir}",
        "seed=0",
        *TINY,
        f"training.steps={STEPS}",
        f"training.checkpoint_every={EVERY}",
        f"training.validate_every={EVERY}",
        "cluster.object_store_mib=200",
        *EXACT,
        *more,
    ]


def group_hashes(run_dir: Path | str) -> dict[str, str]:
    """sha256 of every learned group by task, each verified."""
    run = RunFolder.open(run_dir)
    refs = run.groups.list()
    for ref in refs:
        run.groups.verify(ref)
    return {ref.name: ref.sha256 for ref in refs}


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Journal events of one kind so far."""
    found = RunFolder(run_dir, read_only=True).journal.events()
    return [event for event in found if event["event"] == name]


def wait_until(reached: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until `reached()` is true and return its value."""
    deadline = time.monotonic() + patience_s
    while True:
        if value := reached():
            return value
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain: {what}"
        time.sleep(0.02)


def training(run_dir: Path, stage: str, attempt: int, count: int = 1) -> bool:
    """Whether an attempt at a stage has written so many checkpoints; `stage` as in 000-amber."""
    found = run_dir.glob(f"train/{stage}/attempt-{attempt}/checkpoint-*/state.json")
    return len(list(found)) >= count


class Driver:
    """`python jobs/sequence.py`, or another job, in a process group with all that it starts.

    Use as a context manager: at the end nothing of it is left. Output is in `log`.
    """

    def __init__(
        self,
        log: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        job: str = "sequence",
    ) -> None:
        self.log = log
        self._marker = f"ARCHIPELAGO_TEST_RUN={log}".encode()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, f"jobs/{job}.py", *arguments],
                cwd=ROOT,
                env={**os.environ, "ARCHIPELAGO_TEST_RUN": str(log), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def when(self, reached: Callable[[], Any], what: str) -> Driver:
        """Wait until it has come somewhere; fails if it ends before."""

        def there() -> bool:
            value = reached()
            code = self._process.poll()
            assert value or code is None, f"{what}: it ended with {code}\n{self.output()}"
            return bool(value)

        wait_until(there, what)
        return self

    def send(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self._process.send_signal(number)
        return self.code()

    def code(self, patience_s: float = PATIENCE_S) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(timeout=patience_s)

    def processes(self) -> list[int]:
        """Living processes of this run, the driver itself included."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                mine = os.getsid(pid) == self.pid
                mine = mine or self._marker in (entry / "environ").read_bytes().split(b"\0")
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if mine and not dead:
                    found.append(pid)
        return sorted(found)

    def left(self, patience_s: float = 30.0) -> list[int]:
        """What still lives of it when it had time to go; workers end a little after their Ray."""
        deadline = time.monotonic() + patience_s
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def titled(pids: Iterable[int], *titles: str) -> list[int]:
    """Those processes whose title begins with one of these, as Ray's workers do: `ray::Name`."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(titles):
                found.append(pid)
    return found


def children(parent: int) -> list[int]:
    """Living direct children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, above = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(above) == parent and state != "Z":
                found.append(int(entry.name))
    return found
