"""From a request to its answer: what all calls that show something to the model have in common.

A body is taken in, read in a decoder's process and put to the backend, all within the time that
began with its first byte; what is then known of the request is left for the log and the metrics.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import Request

from archipelago.actors.http.backend import Backend, Reply, Vectors
from archipelago.actors.http.decoders import Decoders, Read
from archipelago.actors.http.intake import in_time, whole_body
from archipelago.actors.http.observe import Seen
from archipelago.actors.http.problems import Problem, cut, not_ready, unknown_task

JSON = "application/json"


@dataclass(frozen=True)
class Answered:
    """What was asked, what is said of each image, and milliseconds of each part and in total."""

    wish: Read
    reply: Reply
    spent: dict[str, float]


@dataclass(frozen=True)
class Embedded:
    """What was shown, its vectors, and milliseconds of each part and in total."""

    wish: Read
    vectors: Vectors
    spent: dict[str, float]


class Calls:
    """Requests put to a backend.

    Args:
        backend: who answers.
        decoders: who reads.
    """

    def __init__(self, backend: Backend, decoders: Decoders) -> None:
        self.backend = backend
        self._decoders = decoders

    async def classify(
        self, request: Request, kind: str, content_type: str = JSON, json_bytes: int | None = None
    ) -> Answered:
        """Images answered as the request asks; arguments as for `Decoders.read`.

        Raises:
            Problem: what is wrong with it, or nobody answers.
        """
        request.state.inference = True
        clock = time.perf_counter()
        wish, decode = await self._read(request, kind, content_type, json_bytes)
        count, began = len(wish.pixels), time.perf_counter()
        async with in_time(request):
            reply = await self.backend.classify(wish.pixels, [wish.ask] * count)
        if reply.unknown is not None:
            raise unknown_task(reply.unknown)
        if len(reply.answers) != count:
            raise not_ready()
        now = time.perf_counter()
        spent = {"total": 1000.0 * (now - clock), "decode": decode, **reply.milliseconds}
        request.state.seen = Seen(reply, count, 0, decode, 1000.0 * (now - began))
        return Answered(wish, reply, spent)

    async def embed(self, request: Request, content_type: str) -> Embedded:
        """Vectors of a request's images and texts.

        Raises:
            Problem: what is wrong with it, or nobody answers.
        """
        request.state.inference = True
        clock = time.perf_counter()
        wish, decode = await self._read(request, "embed", content_type)
        images, texts, began = len(wish.pixels), len(wish.texts), time.perf_counter()
        async with in_time(request):
            vectors = await self.backend.embed(wish.pixels, wish.texts)
        now = time.perf_counter()
        spent = {"total": 1000.0 * (now - clock), "decode": decode, **vectors.milliseconds}
        request.state.seen = Seen(vectors, images, texts, decode, 1000.0 * (now - began))
        return Embedded(wish, vectors, spent)

    async def _read(
        self, request: Request, kind: str, content_type: str, json_bytes: int | None = None
    ) -> tuple[Read, float]:
        """What is asked, and how many milliseconds reading took."""
        packing = request.headers.get("content-encoding", "identity")
        if packing.strip().lower() != "identity":
            words = "send the body as it is"
            raise Problem(415, f"content encoding '{cut(packing)}' is not read: {words}")
        self._decoders.check()
        body = await whole_body(request)
        async with in_time(request):
            size = await self.backend.image_size()
            deadline, began = request.state.deadline, time.perf_counter()
            wish = await self._decoders.read(kind, content_type, body, size, deadline, json_bytes)
        return wish, 1000.0 * (time.perf_counter() - began)
