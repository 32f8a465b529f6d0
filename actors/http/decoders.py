"""The ingress's side of decoding: who reads which body, in which order, and for how long.

Small bodies go to a decoder of their own; whatever turns out to be work waits for the others, the
least work first. So a picture of forty megapixels, however small its file, holds up only its like.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archipelago.actors.http.decoder import HELLO, PATIENT, QUICK, receive, send
from archipelago.actors.http.problems import Problem, busy, not_ready
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.settings import ServingSettings

QUICK_BYTES = 3 * 2**16  # larger bodies are never tried in the quick lane
WORK_A_BYTE = 4  # of a body that nobody has looked into yet, in pixels
START_S = 60.0  # for the warm process to hold its imports, on a loaded machine
MARGIN_S = 1.0  # beyond a decoder's own clock
LARGEST_ANSWER = 2**30


@dataclass(frozen=True)
class Read:
    """A request that was read: what is wanted of each image, pixels (B, S, S, 3), uint8, and the
    rest as in `bodies.Wish`."""

    ask: Ask
    pixels: np.ndarray
    texts: tuple[str, ...] = ()
    name: str | None = None
    outputs: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def of(cls, said: dict[str, Any], pixels: np.ndarray) -> Read:
        """From a decoder's words."""
        ask = dict(said["ask"])
        for key in ("labels", "templates"):
            ask[key] = None if ask[key] is None else tuple(ask[key])
        outputs = tuple((name, binary) for name, binary in said["outputs"])
        return cls(Ask(**ask), pixels, tuple(said["texts"]), said["name"], outputs)


@dataclass(order=True)
class Job:
    """A body to be read; the one with the least work comes first, then the oldest."""

    work: int
    number: int
    head: dict[str, Any] = field(compare=False)
    body: bytes | bytearray = field(compare=False)
    deadline: float = field(compare=False)  # on the monotonic clock
    future: Future[Read] = field(compare=False, default_factory=Future)


class Decoders:
    """A bounded queue before a few processes. Starts with its first job; safe between threads."""

    def __init__(self, limits: ServingSettings) -> None:
        self._limits = limits
        self._numbers = itertools.count()
        self._mutex = threading.Lock()
        self._waiting = 0
        self._lanes: dict[bytes, queue.PriorityQueue[Job]] | None = None
        self._nursery: Nursery | None = None

    def start(self) -> None:
        """Start the processes, unless they run; returns at once."""
        with self._mutex:
            if self._lanes is not None:
                return
            self._lanes = {lane: queue.PriorityQueue() for lane in (QUICK, PATIENT)}
            self._nursery = Nursery(self._limits)
        counts = {QUICK: 1, PATIENT: self._limits.decoders}
        for lane, count in counts.items():
            for _ in range(count):
                what = (self._nursery, lane, self._lanes, self._limits)
                threading.Thread(target=_work, args=what, daemon=True, name="decoder").start()
        self._end = weakref.finalize(self, _stop, self._lanes, counts, self._nursery)

    def close(self) -> None:
        """End the processes; those who wait are told to come again."""
        with self._mutex:
            if self._lanes is None:
                return
            self._lanes = None
        self._end()

    def check(self) -> None:
        """Raises: Problem 429 where no more bodies may wait."""
        if self._waiting >= self._limits.queue:
            raise busy()

    async def read(
        self,
        kind: str,
        content_type: str,
        body: bytes | bytearray,
        size: int,
        deadline: float,
        json_bytes: int | None = None,
    ) -> Read:
        """A body as what is asked in it, with pixels.

        Args:
            kind: `classify`, `embed`, `zero-shot` or `infer`.
            content_type: of the body.
            body: all of it.
            size: S.
            deadline: when nobody waits for it any more, on the monotonic clock.
            json_bytes: length of the JSON part, where binary tensors follow (`infer`).

        Raises:
            Problem: what is wrong with it; 429 where too many wait; 503 where time ran out.
        """
        self.check()
        self.start()
        lanes = self._lanes
        if lanes is None:
            raise not_ready()
        head = {"kind": kind, "content_type": content_type, "size": size, "json_bytes": json_bytes}
        job = Job(WORK_A_BYTE * len(body), next(self._numbers), head, body, deadline)
        with self._mutex:
            self._waiting += 1
        try:
            lanes[QUICK if len(body) <= QUICK_BYTES else PATIENT].put(job)
            return await asyncio.wrap_future(job.future)
        finally:
            with self._mutex:
                self._waiting -= 1


class Nursery:
    """The warm process, which forks decoders; started anew where it was lost."""

    def __init__(self, limits: ServingSettings) -> None:
        self._limits = limits
        self._mutex = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def decoder(self, lane: bytes) -> socket.socket:
        """A connection to a new decoder. Raises: OSError where there is none to be had."""
        ours, theirs = socket.socketpair()
        with theirs, self._mutex:
            try:
                socket.send_fds(self._running(), [lane], [theirs.fileno()])
            except OSError:
                self._end()
                socket.send_fds(self._running(), [lane], [theirs.fileno()])
        ours.settimeout(START_S)
        if ours.recv(1) != HELLO:
            ours.close()
            raise OSError("no decoder can be started")
        return ours

    def close(self) -> None:
        """End it for good."""
        with self._mutex:
            self._closed = True
            self._end()

    def _running(self) -> socket.socket:
        if self._closed:
            raise OSError("the decoders are closed")
        if self._control is None:
            self._control, theirs = socket.socketpair()
            words = [str(theirs.fileno()), self._limits.model_dump_json()]
            paths = os.pathsep.join(path for path in sys.path if path)
            environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "archipelago.actors.http.decoder", *words],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # what libraries say of hostile files
                    start_new_session=True,  # a Ctrl-C is for the parent alone
                )
        return self._control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()  # it holds nothing; its decoders end with their connections
            self._process.wait()
            self._process = None


def _work(
    nursery: Nursery,
    lane: bytes,
    lanes: dict[bytes, queue.PriorityQueue[Job]],
    limits: ServingSettings,
) -> None:
    """One thread, one decoder at a time: the jobs of a lane, the least work first."""
    connection: socket.socket | None = None
    while True:
        if connection is None:
            try:
                connection = nursery.decoder(lane)
            except OSError:  # the next job tries again, or is the last
                connection = None
        job = lanes[lane].get()
        if job.body is CLOSED:
            _send_away(lanes[lane])
            break
        if not job.future.set_running_or_notify_cancel():
            continue
        connection = _do(job, connection, lane, lanes, limits)
    if connection is not None:
        connection.close()


CLOSED = b"closed"


def _send_away(lane: queue.PriorityQueue[Job]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            job = lane.get_nowait()
            if job.body is CLOSED:  # another thread's
                lane.put(job)
                return
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(not_ready())


def _do(
    job: Job,
    connection: socket.socket | None,
    lane: bytes,
    lanes: dict[bytes, queue.PriorityQueue[Job]],
    limits: ServingSettings,
) -> socket.socket | None:
    """Have a job done; the connection, where its decoder is still there."""
    left = job.deadline - time.monotonic()
    if left <= 0 or connection is None:
        job.future.set_exception(not_ready("the body was not read in time; try again"))
        return connection
    try:
        connection.settimeout(left + MARGIN_S)
        send(connection, {**job.head, "seconds": left}, job.body)
        said, rest = receive(connection, LARGEST_ANSWER)
    except (OSError, EOFError, ValueError):  # it was ended, by its limits or by the file
        connection.close()
        if time.monotonic() >= job.deadline:
            job.future.set_exception(not_ready("the body was not read in time; try again"))
        elif lane == QUICK:
            _put_off(job, sys.maxsize, lanes)
        else:
            job.future.set_exception(
                Problem(
                    422,
                    f"the body takes more than {limits.decode_s:g} s or {limits.decode_mib} MiB to"
                    " decode, or breaks its decoder",
                )
            )
        return None
    _settle(job, said, rest, lanes)
    if said.get("last"):
        connection.close()
        return None
    return connection


def _put_off(job: Job, work: int, lanes: dict[bytes, queue.PriorityQueue[Job]]) -> None:
    """Into the other lane; its future is running already, so it moves to a new one."""
    later = Job(work, job.number, job.head, job.body, job.deadline)

    def hand_on(done: Future[Read]) -> None:
        error = done.exception()
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(done.result())

    later.future.add_done_callback(hand_on)
    lanes[PATIENT].put(later)


def _settle(
    job: Job,
    said: dict[str, Any],
    rest: bytearray,
    lanes: dict[bytes, queue.PriorityQueue[Job]],
) -> None:
    if "work" in said:
        _put_off(job, said["work"], lanes)
    elif "problem" in said:
        job.future.set_exception(Problem(*said["problem"]))
    elif "wish" in said:
        found = np.frombuffer(rest, np.uint8).reshape(said["shape"])
        job.future.set_result(Read.of(said["wish"], found))
    else:
        job.future.set_exception(RuntimeError(f"a decoder failed: {said.get('fault')}"))


def _stop(
    lanes: dict[bytes, queue.PriorityQueue[Job]], counts: dict[bytes, int], nursery: Nursery
) -> None:
    """Wake every thread for the last time."""
    nursery.close()
    for lane, count in counts.items():
        for number in range(count):
            lanes[lane].put(Job(-1, number - count, {}, CLOSED, 0.0))


__all__ = ["Decoders"]
