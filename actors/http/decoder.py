"""Processes that read what strangers send: bounded in memory and time, forked from a warm one.

`python -m archipelago.actors.http.decoder FD SETTINGS` is the warm one. It holds the
imports, and for each socket that it is handed over FD it forks a decoder, so that a lost one is
replaced in milliseconds.
Decoders end with their socket, their time or their memory; nothing but the answer leaves them.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from archipelago.actors.http.bodies import Wish, read_wish
from archipelago.actors.http.captions import read_embed, read_zero_shot
from archipelago.actors.http.pixels import look, named, pixels, too_much
from archipelago.actors.http.problems import Problem
from archipelago.actors.http.tensors import read_tensors
from archipelago.pipeline.settings import ServingSettings

HEAD = struct.Struct(">II")  # bytes of the JSON part, bytes of the rest
HELLO = b"1"
QUICK, PATIENT = b"q", b"p"
QUICK_WORK = 500_000  # pixels of plain JPEG that a request may take before it waits its turn
QUICK_MIB = 128
QUICK_S = 0.04
SPARE_MIB = 96  # beyond what headers promise: bodies, JSON, libraries
FAT_MIB = 192  # a decoder that holds more than this when it is done is replaced
NICE = 5


def receive(connection: socket.socket, most: int = 2**32) -> tuple[dict[str, Any], bytearray]:
    """One frame. Raises: EOFError where the other side is gone; ValueError for rubbish."""
    first, second = HEAD.unpack(_exactly(connection, HEAD.size))
    if first + second > most:
        raise ValueError("the frame is too large")
    return json.loads(_exactly(connection, first)), _exactly(connection, second)


def send(connection: socket.socket, head: dict[str, Any], rest: Any = b"") -> None:
    """One frame: JSON and bytes."""
    said = json.dumps(head).encode()
    rest = memoryview(rest).cast("B")
    connection.sendall(HEAD.pack(len(said), len(rest)) + said)
    connection.sendall(rest)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        got = connection.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return data


def answer(
    head: dict[str, Any], body: bytearray, limits: ServingSettings, quick: bool
) -> tuple[dict[str, Any], Any]:
    """What one body holds: the wish and its pixels, a problem, or the work it would take."""
    try:
        size = head["size"]
        wish = _read(head, body, size, limits)
        found = wish.pixels
        if found is None:
            most = (QUICK_MIB if quick else limits.decode_mib) * 2**20
            work = 0
            for index, data in enumerate(wish.files):
                where = named(index, len(wish.files))
                cost = look(data, limits, most, where)
                work += cost.work
                if cost.memory > most and not quick:
                    raise too_much(where.rstrip(": "), cost.memory, limits)
                if quick and (work > QUICK_WORK or cost.memory > most):
                    return {"work": work}, b""
            found = pixels(wish.files, size, limits)
        return {"wish": _plain(wish), "shape": list(found.shape)}, found if found.size else b""
    except Problem as problem:
        return {"problem": [problem.code, problem.message]}, b""
    except MemoryError:
        if quick:
            return {"work": sys.maxsize}, b""
        limit = limits.decode_mib
        return {"problem": [413, f"the body takes more than {limit} MiB to decode"]}, b""
    except Exception as error:  # ours, not the caller's
        return {"fault": f"{type(error).__name__}: {error}"}, b""


def _read(head: dict[str, Any], body: bytearray, size: int, limits: ServingSettings) -> Wish:
    kind = head["kind"]
    if kind == "infer":
        return read_tensors(body, head["json_bytes"], size, limits)
    if kind == "zero-shot":
        return read_zero_shot(body, limits)
    read = {"classify": read_wish, "embed": read_embed}[kind]
    return read(head["content_type"], body, limits)


def _plain(wish: Wish) -> dict[str, Any]:
    said = {"texts": wish.texts, "name": wish.name, "outputs": wish.outputs}
    return {"ask": asdict(wish.ask), **said}


def serve(connection: socket.socket, limits: ServingSettings, quick: bool) -> None:
    """Answer frames until the other side is gone."""
    _confine(limits, quick)
    connection.sendall(HELLO)
    while True:
        try:
            head, body = receive(connection)
        except EOFError:
            return
        _clocks(QUICK_S if quick else limits.decode_s, head["seconds"])
        said, rest = answer(head, body, limits, quick)
        _clocks(0.0, 0.0)
        del body
        gc.collect(0)
        said["last"] = _held() > FAT_MIB * 2**20
        send(connection, said, rest)
        del rest
        if said["last"]:
            return


def _clocks(cpu_s: float, wall_s: float) -> None:
    """The kernel ends this process when either has passed; zeros call it off."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def _confine(limits: ServingSettings, quick: bool) -> None:
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    given = (QUICK_MIB if quick else limits.decode_mib) + SPARE_MIB
    wanted = {
        resource.RLIMIT_AS: _statm(0) + given * 2**20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, most in wanted.items():
        with suppress(ValueError, OSError):  # already lower, or unknown to this system
            resource.setrlimit(kind, (most, most))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
    if not quick:
        os.nice(NICE)


def _statm(column: int) -> int:
    """Bytes of this process: 0 addressed, 1 resident."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[column])
    except OSError:  # not Linux
        return 2**40 if column == 0 else 0
    return pages * resource.getpagesize()


def _held() -> int:
    return _statm(1)


def main(arguments: list[str]) -> None:
    """Fork a decoder for each socket that arrives, until nobody is left to send one."""
    control = socket.socket(fileno=int(arguments[0]))
    limits = ServingSettings.model_validate_json(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    gc.freeze()
    while True:
        lane, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not lane:
            return
        with suppress(OSError):  # no process to be had: the parent finds its socket closed
            if os.fork() == 0:
                try:
                    control.close()
                    serve(socket.socket(fileno=handles[0]), limits, lane == QUICK)
                finally:  # whatever happened: never back into the loop
                    os._exit(0)
        os.close(handles[0])


if __name__ == "__main__":
    main(sys.argv[1:])
