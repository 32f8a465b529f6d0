"""Pushing an export: to a stand-in of the hub over HTTP, and refused where there is no network."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from archipelago.jobs.ray_head import free_ports
from archipelago.pipeline.store import RunFolder
from tests.running import ROOT


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one upload needs; keeps what it is given in `server.files`."""

    def do_POST(self) -> None:
        body = self._body()
        server: Any = self.server
        if self.headers.get("Authorization") != "Bearer hf_stand_in":
            return self._say({"error": "who are you?"}, 401)
        if self.path == "/api/repos/create":
            server.made = json.loads(body)
            return self._say({"url": f"http://127.0.0.1:{server.server_port}/me/first"})
        if "/preupload/" in self.path:
            named = [entry["path"] for entry in json.loads(body)["files"]]
            found = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]
            return self._say({"files": found})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    server.files[value["path"]] = base64.b64decode(value["content"])
            return self._say({"commitUrl": f"{self.path}/1", "commitOid": "1"})
        return self._say({}, 404)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            return self._say([])
        sibling = {"id": "me/first", "siblings": [], "sha": "0" * 40, "private": True, "tags": []}
        return self._say(sibling)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, document: Any, code: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.made = {}, None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def _export(run: RunFolder, to: Path, port: int, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_stand_in", "OMP_NUM_THREADS": "1"}
    environment |= {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(to.parent / "home"),
        **extra,
    }
    words = [f"run_dir={run.uri}", f"to={to}", "hub=me/first"]
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/export.py"), *words], env=environment,
        capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip


def test_an_export_is_pushed_and_an_absent_hub_is_one_line(
    served_run: RunFolder, hub: Any, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    done = _export(served_run, to, hub.server_port)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"pushed: http://127.0.0.1:{hub.server_port}/me/first" in done.stdout
    assert hub.made["name"] == "first" and hub.made["private"] is True
    written = {str(f.relative_to(to)): f.read_bytes() for f in to.rglob("*") if f.is_file()}
    assert hub.files == written and "README.md" in written

    for extra, reason in (
        ({}, "ConnectError"),
        ({"HF_HUB_OFFLINE": "1"}, "OfflineModeIsEnabled"),
        ({"HF_TOKEN": "hf_wrong", "port": ""}, "401"),
    ):
        port = hub.server_port if "port" in extra else free_ports(1)[0]
        refused = _export(served_run, to, port, **{k: v for k, v in extra.items() if k != "port"})
        assert refused.returncode == 2
        said = refused.stderr.strip()
        assert said.startswith("export: hub=me/first: not pushed (") and "\n" not in said, said
        assert reason in said and f"{to} is complete" in said and "hf_" not in said
