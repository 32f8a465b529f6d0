"""An own local Ray head: started for one purpose, ended without touching any other Ray.

with RayHead(logical_cpus=8) as head:
    client = head.jobs()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from archipelago.actors.environment import NO_IDLE_WORKERS, NO_SPINNING
from archipelago.actors.loopback import spare_loopback

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DASHBOARD_PORT = 8265  # Ray's own, taken if it is free
ELSEWHERE = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray obeys these rather than an argument
MARKER = "ARCHIPELAGO_RAY_HEAD"  # inherited by every process of a head, so that all are found
READY_S = 200  # a busy machine starts the dashboard slowly
END_S = 5  # until what did not end is killed: nothing there has a state of its own


class RayHead:
    """A Ray head node with dashboard on this machine, reachable from this machine only.

    Args:
        dashboard_port: taken if it is free; None = any, where several heads start at once.

    Attributes:
        address: `127.0.0.1:port` of the head, where its jobs' drivers connect.
        dashboard: `http://127.0.0.1:port`, also the address for submitting jobs.
        log: what `ray start` printed.
    """

    def __init__(
        self,
        logical_cpus: int = 8,
        object_store_mib: int = 400,
        dashboard_port: int | None = DASHBOARD_PORT,
    ) -> None:
        # Sockets live below it, and their paths must stay under 108 characters.
        self.temp_dir = Path(tempfile.mkdtemp(prefix="arc-", dir="/tmp"))
        self.log = self.temp_dir / "start.log"
        self._identity = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments = [
            f"--num-cpus={logical_cpus}",
            f"--object-store-memory={object_store_mib * 1024**2}",
            f"--temp-dir={self.temp_dir}",
        ]
        self._wished = dashboard_port
        self.address = ""
        self.dashboard = ""

    def start(self) -> RayHead:
        """Start the head and wait until jobs can be submitted; RuntimeError if it does not come."""
        spare_loopback()
        ports = free_ports(5)
        wished = self._wished
        dashboard_port = wished if wished is not None and is_free(wished) else ports[1]
        self.address = f"127.0.0.1:{ports[0]}"
        self.dashboard = f"http://127.0.0.1:{dashboard_port}"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={ports[0]}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
            f"--dashboard-port={dashboard_port}",
            f"--dashboard-agent-listen-port={ports[2]}",
            f"--metrics-export-port={ports[3]}",
            f"--ray-client-server-port={ports[4]}",
            *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
            *self._arguments,
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
            )
        self._wait()
        return self

    def stop(self) -> None:
        """End every process of this head, and of nothing else; may be called twice."""
        if self._process is not None:
            self._process.terminate()  # it ends its own in their order
            if not self._ended(END_S):
                for pid in self.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._ended(END_S)
            self._process = None
        shutil.rmtree(self.temp_dir, ignore_errors=True)

    def jobs(self) -> JobSubmissionClient:
        """A client that submits to this head, also where the environment names another cluster."""
        from ray.job_submission import JobSubmissionClient

        named = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
        try:
            return JobSubmissionClient(self.dashboard)
        finally:
            os.environ.update(named)

    def processes(self) -> list[int]:
        """Ids of this head's processes: the session of `ray start`, and what inherited its marker.

        Ray's own stay in the session (some overwrite their environment); drivers of jobs leave it.
        """
        if self._process is None:
            return []
        marker = f"{MARKER}={self._identity}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            with contextlib.suppress(OSError):
                in_session = os.getsid(pid) == self._process.pid
                if in_session or marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return sorted(found)

    def __enter__(self) -> RayHead:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        # A job's `python` is whatever this PATH finds first.
        binaries = Path(sys.executable).parent
        return {
            **{key: value for key, value in os.environ.items() if key not in ELSEWHERE},
            "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
            "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train page
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this node away
            NO_IDLE_WORKERS[0]: os.environ.get(*NO_IDLE_WORKERS),
            NO_SPINNING[0]: os.environ.get(*NO_SPINNING),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as there: every port on loopback only
            MARKER: self._identity,
        }

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"ray start ended at once: {self._last_words()}")
            try:
                self.jobs().list_jobs()
                if self._has_node():
                    return
            except (ConnectionError, RuntimeError, OSError):
                pass
            time.sleep(0.5)
        raise RuntimeError(f"Ray's dashboard did not come up in {READY_S} s: {self._last_words()}")

    def _has_node(self) -> bool:
        """Whether its raylet runs: the dashboard answers before `ray start` has come that far."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
        return False

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "no output"

    def _ended(self, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if self._process is not None:
                self._process.poll()  # reaps it
            if not self.processes():
                return True
            time.sleep(0.2)
        return False


def is_free(port: int) -> bool:
    """Whether nothing listens on a local port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """`count` different local ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
