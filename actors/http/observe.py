"""What is counted and what is logged: per task, and never what an image shows.

One line a request goes to the log, with fields of its own: the request's id, method, path, status,
milliseconds, generation, tasks.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from archipelago.actors.http.backend import Reply, Vectors
from archipelago.actors.http.intake import header
from archipelago.actors.http.problems import Problem, cut
from archipelago.actors.http.statistics import Statistics

log = logging.getLogger("ray.serve.archipelago")  # below Serve's own: its handlers write it
NOBODY = "none"  # the task of unseen images
QUIET = ("/v2/health", "/-/healthz")
BUCKETS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000]
LONGEST_PATH = 200
GONE = 499  # of a request that nobody waited for
# Of every answer; pages have a policy of their own.
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Seen:
    """What is known of a request for the model once it is answered.

    Attributes:
        reply: what came back.
        images: how many were shown.
        texts: how many were to be embedded.
        decode: milliseconds of reading the body.
        waited: milliseconds until the model had answered.
    """

    reply: Reply | Vectors
    images: int
    texts: int = 0
    decode: float = 0.0
    waited: float = 0.0


class Observer:
    """Logs; `Meter` also counts."""

    def note(self, fields: Mapping[str, Any], seen: Seen | None) -> None:
        """One answered request."""
        path, status = fields["path"], fields["status"]
        if not path.startswith(QUIET):
            words = (fields["method"], path, status, fields["milliseconds"])
            log.info("%s %s %d in %g ms", *words, extra=dict(fields))
        self.count(path, status, fields["milliseconds"], seen)

    def count(self, path: str, status: int, milliseconds: float, seen: Seen | None) -> None:
        """Nothing is counted here."""


class Watch:
    """The outermost ASGI middleware: times, names and notes every request, failed ones too."""

    def __init__(self, app: ASGIApp, observer: Observer, statistics: Statistics) -> None:
        self.app = app
        self.observer = observer
        self.statistics = statistics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens, with its id and the headers that are always there."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        clock = time.perf_counter()
        given = cut(header(scope, b"x-request-id"), 64)
        name = "".join(c for c in given if c.isascii()) or uuid.uuid4().hex
        state = scope.setdefault("state", {})
        status = GONE

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["X-Request-Id"] = name
                for key, value in SAFE.items():
                    headers.setdefault(key, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception as error:
            why = f"{type(error).__name__}: {cut(error, LONGEST_PATH)}"
            log.error("a request failed: %s", why, exc_info=error, extra={"request": name})
            begun, status = status != GONE, 500
            if begun:
                raise  # half an answer is out: the connection must end
            problem = Problem(500, "the server failed; the reason is in its log")
            await problem.response(scope)(scope, receive, named)
        finally:
            self._note(scope, name, status, 1000.0 * (time.perf_counter() - clock), state)

    def _note(
        self, scope: Scope, name: str, status: int, spent: float, state: Mapping[str, Any]
    ) -> None:
        seen: Seen | None = state.get("seen")
        if state.get("inference"):
            self.statistics.count(status, spent, seen)
        fields = {
            "request": name,
            "method": cut(scope["method"]),
            "path": cut(scope["path"], LONGEST_PATH),
            "status": status,
            "milliseconds": round(spent, 2),
        }
        if seen is not None:
            reply = seen.reply
            fields |= {"generation": reply.generation, "images": seen.images, "again": reply.again}
            if isinstance(reply, Reply):
                fields |= {"consulted": reply.consulted, "late": reply.late}
                fields["tasks"] = [answer.task or NOBODY for answer in reply.answers]
            else:
                fields["texts"] = seen.texts
        self.observer.note(fields, seen)


class Meter(Observer):
    """Counts into Ray's metrics; labels are task names, statuses and kinds only."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Histogram

        self._images = Counter(
            "archipelago_images", description="Classified images", tag_keys=("task",)
        )
        self._embedded = Counter(
            "archipelago_embedded", description="Embedded images and texts", tag_keys=("kind",)
        )
        self._unseen = Counter("archipelago_unseen", description="Images of no learned domain")
        self._errors = Counter(
            "archipelago_errors", description="Refused or failed requests", tag_keys=("code",)
        )
        self._again = Counter(
            "archipelago_fallbacks", description="Requests sent again after a replica was lost"
        )
        self._consults = Counter(
            "archipelago_consults",
            description="Images that the multimodal model was asked about",
            tag_keys=("answer",),
        )
        self._latency = Histogram(
            "archipelago_latency_ms",
            description="Milliseconds of a classify request",
            boundaries=BUCKETS,
            tag_keys=("task",),
        )

    def count(self, path: str, status: int, milliseconds: float, seen: Seen | None) -> None:
        """One request."""
        if status >= 400:
            self._errors.inc(tags={"code": str(status)})
        if seen is None:
            return
        if seen.reply.again:
            self._again.inc(seen.reply.again)
        if isinstance(seen.reply, Reply):
            self._classified(seen.reply, milliseconds)
            return
        for kind, count in (("image", seen.images), ("text", seen.texts)):
            if count:
                self._embedded.inc(count, tags={"kind": kind})

    def _classified(self, reply: Reply, milliseconds: float) -> None:
        in_time = reply.consulted - reply.late
        for answer, count in (("in time", in_time), ("late", reply.late)):
            if count:
                self._consults.inc(count, tags={"answer": answer})
        tasks = [answer.task or NOBODY for answer in reply.answers]
        for task in tasks:
            self._images.inc(tags={"task": task})
        if unseen := sum(answer.unseen for answer in reply.answers):
            self._unseen.inc(unseen)
        for task in set(tasks):
            self._latency.observe(max(milliseconds, 0.001), tags={"task": task})
