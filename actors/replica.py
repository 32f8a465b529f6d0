"""One replica of the model: every group in memory, mixed batches, the next generation beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from ray import serve

from archipelago.actors.consult import SecondOpinion, consults
from archipelago.actors.http.backend import Reply, Vectors
from archipelago.actors.http.local import describe, embed, example, lineage
from archipelago.pipeline.errors import IntegrityError, Refused
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.learned.consult import ConsultRequest, ConsultResult
from archipelago.pipeline.serving.model import ServedModel, single_thread
from archipelago.pipeline.serving.pointer import Pointer, read_pointer
from archipelago.pipeline.settings import ServingSettings

log = logging.getLogger("ray.serve.archipelago")

PASS = 64  # images in one pass: bounds memory whatever a batch of requests holds
Request = tuple[np.ndarray, list[Ask]]


class Replica:
    """Body of the model's deployment.

    Requests are answered in one thread and generations are loaded in another, so that neither
    waits for the other. The pointer is read again at the end of the construction and before the
    first request: whatever was published while Serve started this replica is not missed.
    """

    def __init__(self, run_dir: str, serving: dict[str, Any], device: str = "auto") -> None:
        from ray.serve.metrics import Gauge

        self.serving = ServingSettings.model_validate(serving)
        single_thread(self.serving.threads)
        self.model = ServedModel(run_dir, self.serving, device)
        # The attention kernel is chosen per process: entered once, for both threads.
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self.model.exact())
        self._answering = ThreadPoolExecutor(1, "answer")
        self._loading = ThreadPoolExecutor(1, "load")
        self._fresh = True
        settings = self.model.settings
        self._second: SecondOpinion | None = None
        if consults(settings, self.serving):
            self._second = SecondOpinion(settings, self.serving.consult_s)
        self._lag = Gauge("archipelago_generation_lag", description="Generations behind the run")
        size = self.model.backbone.image_size
        self.model.classify(np.zeros((1, size, size, 3), np.uint8), [Ask()])
        self._batched.set_max_batch_size(self.serving.batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(  # type: ignore[attr-defined]
            self.serving.batch_wait_ms / 1000.0
        )
        self.model.follow()
        self._end = threading.Event()
        threading.Thread(target=self._poll, name="follow", daemon=True).start()

    @property
    def name(self) -> str:
        """What Serve calls this replica."""
        return str(serve.get_replica_context().replica_id.unique_id)

    # -- requests ----------------------------------------------------------------------------

    async def classify(self, images: np.ndarray, asks: list[Ask]) -> Reply:
        """Answer one request; it shares its pass with whatever else is waiting."""
        reply, unsure = await self._batched((images, asks))
        if self._second is None or not unsure:
            return reply
        clock = time.perf_counter()
        results = await self._second(images[[request.row for request in unsure]], unsure)
        if results is None:
            reply = replace(reply, late=len(unsure))
        else:
            reply = await self._answer_consulted(reply, images, asks, unsure, results)
        spent = {**reply.milliseconds, "consult": 1000.0 * (time.perf_counter() - clock)}
        return replace(reply, consulted=len(unsure), milliseconds=spent)

    async def _answer_consulted(
        self,
        reply: Reply,
        images: np.ndarray,
        asks: list[Ask],
        unsure: list[ConsultRequest],
        results: list[ConsultResult],
    ) -> Reply:
        """Unsure images are answered anew, with what the model says of their domain."""
        rows = [request.row for request in unsure]
        wishes = [
            replace(asks[row], shares=shares) for row, shares in zip(rows, results, strict=True)
        ]
        again, _ = await self._batched((images[rows], wishes))
        if again.generation != reply.generation or again.unknown is not None:
            return reply  # a new generation answers by now: one request, one generation
        answers = list(reply.answers)
        for row, answer in zip(rows, again.answers, strict=True):
            answers[row] = answer
        return replace(reply, answers=tuple(answers))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def _batched(self, requests: list[Request]) -> list[tuple[Reply, list[ConsultRequest]]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._answering, self._answer, requests)

    def _answer(self, requests: Sequence[Request]) -> list[tuple[Reply, list[ConsultRequest]]]:
        self._refresh()
        known = self.model.current.tasks
        replies: list[tuple[Reply, list[ConsultRequest]] | None] = [None] * len(requests)
        taken: list[int] = []
        for index, (_, asks) in enumerate(requests):
            unknown = next((n for ask in asks for n in ask.names if n not in known), None)
            if unknown is not None:
                generation = self.model.current.pointer.generation
                replies[index] = Reply(generation, unknown=unknown), []
            else:
                taken.append(index)
        for part in _parts(taken, [len(images) for images, _ in requests]):
            pixels = np.concatenate([requests[index][0] for index in part])
            asks = [ask for index in part for ask in requests[index][1]]
            unsure: list[ConsultRequest] = []
            try:
                generation, answers, spent = self.model.classify(pixels, asks, unsure)
            except KeyError as error:  # forgotten between the check and the pass
                for index in part:
                    replies[index] = Reply(0, unknown=str(error.args[0])), []
                continue
            start = 0
            for index in part:
                stop = start + len(requests[index][0])
                own = [
                    replace(request, row=request.row - start)
                    for request in unsure
                    if start <= request.row < stop
                ]
                replies[index] = Reply(generation, tuple(answers[start:stop]), spent), own
                start = stop
        assert all(reply is not None for reply in replies)
        return replies  # type: ignore[return-value]

    async def embed(self, images: np.ndarray, texts: list[str]) -> Vectors:
        """Vectors of one request's images and texts, in the thread that answers."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._answering, self._embed, images, texts)

    def _embed(self, images: np.ndarray, texts: list[str]) -> Vectors:
        self._refresh()
        return embed(self.model, images, texts)

    async def describe(self) -> dict[str, Any]:
        """See `actors.http.backend.describe`."""
        return await asyncio.to_thread(describe, self.model)

    async def lineage(self, task: str) -> dict[str, Any] | None:
        """See `actors.http.backend.lineage`."""
        return lineage(self.model.run, self.model.current, task)

    async def example(self, task: str, index: int) -> bytes | None:
        """See `actors.http.backend.example`."""
        return await asyncio.to_thread(example, self.model.current, task, index)

    # -- generations -------------------------------------------------------------------------

    async def prepare(self, pointer: Pointer) -> dict[str, Any]:
        """Load a generation off the request path and put it to the canary."""
        loop = asyncio.get_running_loop()
        try:
            changes = await loop.run_in_executor(self._loading, self.model.prepare, pointer)
        except (Refused, IntegrityError) as error:
            return {"replica": self.name, "refused": " ".join(str(error).split())}
        return {"replica": self.name, "refused": None, "changes": changes}

    async def activate(self, pointer: Pointer) -> dict[str, Any]:
        """Answer from a generation from now on; one that was not prepared here is followed."""
        if self.model.activate(pointer).generation < pointer.generation:
            await asyncio.get_running_loop().run_in_executor(self._loading, self._follow)
        return await self.report()

    async def report(self) -> dict[str, Any]:
        """Which generation answers here."""
        pointer = self.model.current.pointer
        return {"replica": self.name, "generation": pointer.generation}

    def _refresh(self) -> None:
        """Before the first request."""
        if self._fresh:
            self._follow()
            self._fresh = False

    def _follow(self) -> None:
        try:
            self.model.follow()
        except (Refused, IntegrityError, OSError) as error:
            log.error("the current generation cannot be loaded: %s", error)

    def _poll(self) -> None:
        """The safety net: a publisher may be lost between the pointer and the activation."""
        while not self._end.wait(self.serving.poll_s):
            try:
                lag = read_pointer(self.model.run).generation
                lag -= self.model.current.pointer.generation
                self._lag.set(lag)
            except (IntegrityError, OSError) as error:
                log.error("serving.json cannot be read: %s", error)
                continue
            if lag > 0:
                self._loading.submit(self._follow).result()


def _parts(indices: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Requests in passes of about `PASS` images; one is never divided."""
    parts: list[list[int]] = []
    room = 0
    for index in indices:
        if sizes[index] > room or not parts:
            parts.append([])
            room = PASS
        parts[-1].append(index)
        room -= sizes[index]
    return parts
