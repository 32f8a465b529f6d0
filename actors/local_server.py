"""The HTTP application over a model in one process of its own, so that its memory can be measured.

python -m archipelago.actors.local_server RUN_DIR SETTINGS: prints its port, serves until its input
ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    """A running server."""

    url: str
    port: int
    process: subprocess.Popen[str]

    @property
    def pids(self) -> list[int]:
        """The server and its decoders."""
        found, parents = [self.process.pid], {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # gone meanwhile
                    continue
                parents[int(entry.name)] = int(stat[1])
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def memory(self) -> float:
        """MiB that these processes hold by themselves, each page counted once."""
        total = 0
        for pid in self.pids:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024


@contextmanager
def local_server(run_dir: str, **serving: object) -> Iterator[Server]:
    """Serve a run on a free loopback port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "archipelago.actors.local_server", run_dir, json.dumps(serving)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Server(f"http://127.0.0.1:{port}", port, process)
    finally:
        process.kill()
        process.communicate()


def main(run_dir: str, settings: str) -> None:
    """Serve until the input ends."""
    import torch
    import uvicorn

    from archipelago.actors.http.app import create_app
    from archipelago.actors.http.local import LocalBackend
    from archipelago.pipeline.serving.model import ServedModel
    from archipelago.pipeline.settings import ServingSettings

    torch.set_num_threads(1)
    serving = ServingSettings.model_validate_json(settings)
    app = create_app(LocalBackend(ServedModel(run_dir, serving, "cpu")), serving)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    sys.stdout.write(f"{server.servers[0].sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main(*sys.argv[1:])
