"""A running endpoint from outside: requests, load, and what to kill."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import test_images

LONGEST_LINE = 300
TOKEN = "the token"


@dataclass
class Endpoint:
    """A running endpoint and what it serves."""

    url: str
    run: RunFolder
    world: World

    def body(self, of: str = TASKS[0], count: int = 1, **more: object) -> dict[str, object]:
        files = []
        for pixels in test_images(self.world, of, count):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            files.append(base64.b64encode(file.getvalue()).decode())
        return {"images": files, **more}

    def admin(self, verb: str, **body: object) -> tuple[int, dict]:
        return call(f"{self.url}/v1/admin/{verb}", body, TOKEN)


@contextmanager
def listening(app: Any, port: int = 0) -> Iterator[str]:
    """An application on a loopback port, by default a free one; the value is its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def refusal(path: str, status: int, answer: Any) -> str:
    """The one line of a refusal, which has the form that belongs to its path."""
    line = answer["error"]
    if not path.startswith("/v2"):
        assert line["code"] == status
        line = line["message"]
    assert isinstance(line, str) and line and "\n" not in line and len(line) < LONGEST_LINE
    return line


def call(
    url: str, body: Any = None, token: str | None = None, timeout: float = 60.0
) -> tuple[int, Any]:
    """Status and JSON of one request; a body makes it a POST."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@dataclass
class Load:
    """Steady requests from a few threads, until the context ends.

    Attributes:
        results: (when it began, seconds, status, answer).
    """

    url: str
    body: dict[str, Any]
    threads: int = 2
    pause_s: float = 0.02
    results: list[tuple[float, float, int, Any]] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._end = threading.Event()
        self._workers = [threading.Thread(target=self._work) for _ in range(self.threads)]
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while not self._end.wait(self.pause_s):
            start = time.perf_counter()
            try:
                status, answer = call(f"{self.url}/v1/classify", self.body)
            except OSError as error:
                status, answer = 0, {"error": str(error)}
            self.results.append((start, time.perf_counter() - start, status, answer))

    @property
    def failures(self) -> list[Any]:
        """What was not answered with 200."""
        return [(status, answer) for _, _, status, answer in self.results if status != 200]

    def percentiles(self, begin: float, end: float) -> tuple[int, float, float]:
        """Count, p50 and p99 in milliseconds of requests that began in a span of time."""
        times = [1000 * took for start, took, _, _ in self.results if begin <= start < end]
        if not times:
            return 0, float("nan"), float("nan")
        return len(times), float(np.quantile(times, 0.5)), float(np.quantile(times, 0.99))
