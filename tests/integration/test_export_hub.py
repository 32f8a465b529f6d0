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

from archipelago.actors.ray_head import free_ports
from archipelago.jobs import export
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
        if self.path == "/api/validate-yaml":
            server.card = json.loads(body)["content"]
            return self._say({"errors": [], "warnings": []})
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
    server.files, server.made, server.card = {}, None, None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


PUSHING = """
import pathlib, sys
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.export.hub import push
try:
    sys.stdout.write(push(pathlib.Path(sys.argv[1]), "me/first"))
except UserError as error:
    sys.stdout.write(f"refused: {error}")
"""


def _push(folder: Path, port: int, token: str = "hf_stand_in") -> str:
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HOME": str(folder.parent / "home"), "HF_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", PUSHING, str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_folder_is_pushed_and_what_prevents_it_is_one_line(hub: Any, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    (folder / "groups/000-a").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: archipelago\n---\n")
    (folder / "groups/000-a/group.safetensors").write_bytes(bytes(range(256)) * 64)
    assert _push(folder, hub.server_port) == f"http://127.0.0.1:{hub.server_port}/me/first"
    assert hub.made["name"] == "first" and hub.made["visibility"] == "private", hub.made
    written = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert hub.files == written and hub.card == written["README.md"].decode()
    for port, token, reason in (
        (free_ports(1)[0], "hf_stand_in", "ConnectError"),
        (hub.server_port, "hf_wrong", "401"),
    ):
        said = _push(folder, port, token)
        assert said.startswith("refused: hub=me/first: not pushed (") and "\n" not in said
        assert reason in said and f"{folder} is complete" in said and token not in said


def test_without_a_network_the_folder_is_whole_and_the_job_says_why(
    served_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run_dir={served_run.uri}", f"to={tmp_path}/to"]
    assert export.main([*words, "hub=me/first"]) == 2  # tests are offline
    said = capsys.readouterr().err.strip()
    assert said.startswith("export: hub=me/first: not pushed (OfflineModeIsEnabled")
    assert "\n" not in said and (tmp_path / "to/config.json").exists()
    assert export.main([*words, "hub=not a name"]) == 2
    assert "hub=not a name: is no name of a repository" in capsys.readouterr().err
