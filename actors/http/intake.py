"""What is taken in of a request's body: so many bytes, for so long, from so many at a time.

The rules hold for every path, in front of whatever reads the body. Who answers before a body has
arrived reads a bounded rest of it first: clients that send before they read would see a reset.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from archipelago.actors.http.problems import Problem, busy, not_ready, path_of
from archipelago.pipeline.settings import ServingSettings

ADMIN = "/v1/admin/"
ADMIN_BYTES = 2**14
HELD_BODIES = 16  # bodies of the largest size that are held at a time; smaller ones are more
STALLED_S = 10.0  # between two pieces of a body
REST_BYTES = 2**27  # of a refused body that are read and thrown away
REST_S = 10.0
REST_STALLED_S = 1.0


class Intake:
    """ASGI middleware: bounds what bodies cost. Requests get `state["deadline"]`, monotonic."""

    def __init__(self, app: ASGIApp, limits: ServingSettings) -> None:
        self.app = app
        self.limits = limits
        self.largest = limits.max_body_mib * 2**20
        self.held = 0  # bytes of bodies under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a body that is bounded."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive, send)
        scope.setdefault("state", {})["deadline"] = body.deadline
        try:
            if body.told > body.largest:
                refusal = too_large(body.largest).response(scope)
                await refusal(scope, body.receive, body.send)
            else:
                await self.app(scope, body.receive, body.send)
        finally:
            self.held -= body.taken


class _Body:
    """One request's body on its way in."""

    def __init__(self, intake: Intake, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._intake, self._receive, self._send = intake, receive, send
        self._expects = b"100-continue" in headers.get(b"expect", b"").lower()
        announced = headers.keys() & {b"content-length", b"transfer-encoding"}
        self._whole = scope["method"] in ("GET", "HEAD") and not announced
        self._stalled = False
        self.largest = intake.largest
        if path_of(scope).startswith(ADMIN):
            self.largest = min(self.largest, ADMIN_BYTES)
        told = headers.get(b"content-length", b"0")
        self.told = int(told) if told.isdigit() and len(told) < 19 else 0
        self.taken = 0
        self.deadline = time.monotonic() + intake.limits.timeout_s

    async def receive(self) -> Message:
        """The next piece. Raises: Problem 408, 413 or 429."""
        if self._whole:
            return await self._receive()
        patience = min(STALLED_S, self.deadline - time.monotonic())
        message = await self._next(patience)
        if message is None:
            self._stalled = True
            raise Problem(408, "the body did not arrive in time")
        count = len(message.get("body", b""))
        self.taken += count
        self._intake.held += count
        if self.taken > self.largest:
            raise too_large(self.largest)
        if self._intake.held > HELD_BODIES * self._intake.largest:
            raise busy("too many large bodies are under way")
        return message

    async def send(self, message: Message) -> None:
        """An answer; before it begins, what is left of the body is read or given up."""
        if message["type"] == "http.response.start" and not self._whole:
            if not await self._drain():
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            self._whole = True
        await self._send(message)

    async def _next(self, patience_s: float) -> Message | None:
        """A message, None where none came in time."""
        try:
            async with asyncio.timeout(max(0.0, patience_s)):
                message = await self._receive()
        except TimeoutError:
            return None
        self._expects = False
        last = message["type"] != "http.request" or not message.get("more_body", False)
        self._whole = self._whole or last
        return message

    async def _drain(self) -> bool:
        """Whether the rest of the body was read."""
        if self._stalled or self._expects or self.told - self.taken > REST_BYTES:
            return False  # not sent yet, or never read to its end
        rest, end = 0, time.monotonic() + REST_S
        while not self._whole and rest <= REST_BYTES and time.monotonic() < end:
            message = await self._next(REST_STALLED_S)
            if message is None:
                return False
            rest += len(message.get("body", b""))
        return self._whole


def too_large(limit: int) -> Problem:
    """413 for a body."""
    size = f"{limit / 2**20:g} MiB" if limit >= 2**20 else f"{limit} bytes"
    return Problem(413, f"the body is larger than {size}")


async def whole_body(request: Request) -> bytearray:
    """All of a body, however small its pieces. Raises: Problem 400 where it was broken off."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
    except ClientDisconnect:
        raise Problem(400, "the connection ended before the body did") from None
    return body


@asynccontextmanager
async def in_time(request: Request) -> AsyncIterator[None]:
    """A request's work, within the time that began with its first byte; Problem 503 beyond it."""
    try:
        async with asyncio.timeout(max(0.0, request.state.deadline - time.monotonic())):
            yield
    except TimeoutError:
        raise not_ready("the request took too long; try again") from None


def header(scope: Scope, name: bytes) -> str:
    """A header of a request, or nothing."""
    pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in pairs if key == name), "")
