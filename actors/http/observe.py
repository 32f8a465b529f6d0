"""What is counted and what is logged: per task, and never what an image shows.

One line of JSON a request goes to the log: method, path, status, milliseconds, generation, tasks.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request, Response

from actors.http.backend import Reply

log = logging.getLogger("ray.serve.archipelago")  # below Serve's own: its handlers write it
NOBODY = "none"  # the task of unseen images
QUIET = ("/v2/health", "/-/healthz")
BUCKETS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000]


@dataclass(frozen=True)
class Seen:
    """What is known of a classify request once it is answered."""

    reply: Reply
    images: int


class Observer:
    """Logs; `Meter` also counts."""

    async def middleware(
        self, request: Request, call: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Time a request, give it an id, and write its line."""
        clock = time.perf_counter()
        name = request.headers.get("x-request-id", "")[:64] or uuid.uuid4().hex
        name = "".join(c for c in name if c.isascii() and c.isprintable()) or uuid.uuid4().hex
        response = await call(request)
        milliseconds = 1000.0 * (time.perf_counter() - clock)
        response.headers["X-Request-Id"] = name
        seen: Seen | None = getattr(request.state, "seen", None)
        if not request.url.path.startswith(QUIET):
            line = {
                "request": name,
                "method": request.method,
                "path": request.url.path[:200],
                "status": response.status_code,
                "milliseconds": round(milliseconds, 2),
            }
            if seen is not None:
                line["generation"] = seen.reply.generation
                line["images"] = seen.images
                line["again"] = seen.reply.again
                line["consulted"] = seen.reply.consulted
                line["late"] = seen.reply.late
                line["tasks"] = [answer.task or NOBODY for answer in seen.reply.answers]
            log.info(json.dumps(line))
        self.count(request.url.path, response.status_code, milliseconds, seen)
        return response

    def count(self, path: str, status: int, milliseconds: float, seen: Seen | None) -> None:
        """Nothing is counted here."""


class Meter(Observer):
    """Counts into Ray's metrics; labels are task names and statuses only."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Histogram

        self._images = Counter(
            "archipelago_images", description="Classified images", tag_keys=("task",)
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
        in_time = seen.reply.consulted - seen.reply.late
        for answer, count in (("in time", in_time), ("late", seen.reply.late)):
            if count:
                self._consults.inc(count, tags={"answer": answer})
        tasks = [answer.task or NOBODY for answer in seen.reply.answers]
        for task in tasks:
            self._images.inc(tags={"task": task})
        if unseen := sum(answer.unseen for answer in seen.reply.answers):
            self._unseen.inc(unseen)
        for task in set(tasks):
            self._latency.observe(max(milliseconds, 0.001), tags={"task": task})
