"""The application over real sockets: clients that stall, that send before they read, its log."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray._common.filters import CoreContextFilter
from ray._common.formatters import JSONFormatter

from archipelago.actors.client import Client, ServerError
from archipelago.actors.http import intake
from archipelago.actors.http.admin import TOKEN, token_hash
from archipelago.actors.http.app import create_app
from archipelago.actors.http.backend import Backend
from archipelago.actors.http.local import LocalBackend
from archipelago.actors.http.observe import log
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.helpers import png
from tests.serving import listening
from tests.unit.tiny_serving import SERVING

LIMITS = SERVING.model_copy(update={"max_body_mib": 1})
CLASSIFY = "POST /v1/classify HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"


class WithAdmin(LocalBackend):
    async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
        if verb == "rollback":
            raise ZeroDivisionError("a defect")
        return {"generation": 7}


@pytest.fixture(scope="module")
def backend(served_run: RunFolder) -> Backend:
    return WithAdmin(ServedModel(served_run.uri, LIMITS, "cpu"))


Serve = Callable[..., int]


@pytest.fixture
def serve(backend: Backend) -> Iterator[Serve]:
    """Serves on a port of its own until the test ends; the value is that port."""
    with ExitStack() as running:

        def start(token: str = "secret", **limits: Any) -> int:
            app = create_app(backend, LIMITS.model_copy(update=limits), token_hash(token))
            return int(running.enter_context(listening(app)).rpartition(":")[2])

        yield start


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, once the server closes the connection or the body is whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, body


def closed(connection: socket.socket) -> bool:
    return connection.recv(1) == b""


def test_an_upload_that_stalls_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "STALLED_S", 0.3)
    port = serve()
    for head in ("content-length: 1000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n5\r\n"):
        with connected(port) as connection:
            connection.sendall((CLASSIFY + head).encode() + b'{"im')
            status, headers, body = answer(connection)
            assert status == 408 and headers["connection"] == "close" and headers["x-request-id"]
            assert json.loads(body)["error"]["message"] == "the body did not arrive in time"
            assert closed(connection)


def test_an_upload_that_trickles_is_given_up(serve: Serve) -> None:
    """Each byte comes in time; all of them would never."""
    port = serve(timeout_s=1)
    stop = threading.Event()
    with connected(port) as connection:
        connection.sendall((CLASSIFY + "content-length: 100000\r\n\r\n").encode())

        def trickle() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert answer(connection)[0] == 408
        finally:
            stop.set()
            sender.join()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/admin/publish", "/nowhere"])
def test_who_sends_all_before_reading_has_an_answer(serve: Serve, path: str, chunked: bool) -> None:
    """A reset would take the answer with it; what is left of a body is read first."""
    port, size = serve(), 24 * 2**20
    head = CLASSIFY.replace("/v1/classify", path)
    with connected(port) as connection:
        if chunked:
            connection.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
            piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
            for _ in range(size // 2**20):
                connection.sendall(piece)
            connection.sendall(b"0\r\n\r\n")
        else:
            connection.sendall((head + f"content-length: {size}\r\n\r\n").encode() + bytes(size))
        status, _, body = answer(connection)
    assert status in ((413, 404) if path == "/nowhere" else (413,))
    assert "\n" not in json.loads(body)["error"]["message"]


def test_who_asks_before_sending_is_told_at_once(serve: Serve) -> None:
    port = serve()
    with connected(port) as connection:
        words = f"expect: 100-continue\r\ncontent-length: {2**30}\r\n\r\n"
        connection.sendall((CLASSIFY + words).encode())
        assert answer(connection)[0] == 413
        assert closed(connection)


@pytest.mark.parametrize("theirs", ["secret", " secret", "secret\n", "\tsecret \r\n"])
@pytest.mark.parametrize("ours", ["secret", "secret\n", "  secret\t"])
def test_white_space_around_a_token_says_nothing(serve: Serve, theirs: str, ours: str) -> None:
    port = serve(theirs)
    with Client(f"http://127.0.0.1:{port}", token=ours) as client:
        assert client.publish(1) == 7
    with (
        Client(f"http://127.0.0.1:{port}", token="sec ret") as client,
        pytest.raises(ServerError, match=r"\(401\)"),
    ):
        client.publish(1)
    with connected(port) as connection:
        words = "authorization:   bearer  secret  \r\ncontent-length: 15\r\n\r\n"
        head = CLASSIFY.replace("classify", "admin/publish")
        connection.sendall((head + words).encode() + b'{"manifest": 1}')
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("token", ["sécret", "sec\nret", "\u200bsecret", "a\x00b"])
def test_a_token_that_no_header_carries_is_refused_on_both_sides(token: str) -> None:
    with pytest.raises(UserError, match=f"^{TOKEN}: holds control or non-ASCII"):
        token_hash(token)
    with pytest.raises(ValueError, match="token: holds control or non-ASCII"):
        Client("http://127.0.0.1:1", token=token)


@dataclass
class Lines(logging.Handler):
    """What Serve's handler writes of each record."""

    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())
        self.addFilter(CoreContextFilter())

    __hash__ = object.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    handler, level = Lines(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(level)


def test_every_request_is_one_line_of_json_with_its_id(serve: Serve, written: list[str]) -> None:
    port = serve()
    image, key = png((200, 80, 40), size=32), "authorization: Bearer secret\r\n"
    key += "content-type: application/json\r\n"
    cases = [
        ("POST", "/v1/classify", "content-type: image/png\r\n", image, 200),
        ("POST", "/v1/classify", "content-type: application/json\r\n", b'{"images": 3}', 422),
        ("POST", "/v1/classify", "", bytes(2**20 + 1), 413),
        ("POST", '/v1/admin/publish?x="y"', key, b'{"manifest": 1}', 200),
        ("POST", "/v1/admin/publish", "", b"{}", 401),
        ("POST", "/v1/admin/rollback", key, b'{"manifest": 1}', 500),
        ("GET", '/no%22%0A{"request":"forged"}', "", b"", 404),
    ]
    told = []
    for number, (method, path, more, body, expected) in enumerate(cases):
        name = f"mine-{number}" if number % 2 else ""
        more += f"x-request-id: {name}\r\n" if name else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: a\r\n{more}content-length: {len(body)}\r\n\r\n"
        with connected(port) as connection:
            connection.sendall(head.encode() + body)
            status, headers, _ = answer(connection)
        assert status == expected, path
        assert not name or headers["x-request-id"] == name
        told.append((headers["x-request-id"], method, expected))
    lines = noted(written, len(cases))
    found = {line["request"]: line for line in lines if "status" in line}
    assert [(name, found[name]["method"], found[name]["status"]) for name, *_ in told] == told
    assert all(isinstance(line["milliseconds"], float) for line in found.values())
    first, last = found[told[0][0]], found[told[-1][0]]
    assert isinstance(first["tasks"], list) and first["images"] == 1
    assert last["path"] == '/no" {"request":"forged"}' and last["request"] != "forged"
    assert all("\n" not in line for line in written)
    [failed] = [line for line in lines if "failed" in line["message"]]
    assert failed["request"] == told[5][0] and "ZeroDivisionError" in failed["message"]


def noted(written: list[str], count: int) -> list[dict[str, Any]]:
    """The lines, once so many requests are among them: a line is written after its answer."""
    end = time.monotonic() + 30
    while True:
        lines = [json.loads(line) for line in list(written)]
        if sum("status" in line for line in lines) >= count or time.monotonic() > end:
            return lines
        time.sleep(0.01)
