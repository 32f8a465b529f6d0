"""The HTTP application under hostile requests: what they cost, and what others notice of them.

    python jobs/bench_hostile.py run_dir=/data/runs/a
    python jobs/bench_hostile.py run_dir=/data/runs/a requests=500 hostile=0

Serves a run in a process of its own, without Ray. `requests` are made from its OpenAPI document,
valid and broken (needs the `dev` extra); meanwhile another client asks for its health. Then
`hostile` images that cost far more than their bytes suggest come at once, beside one client that
classifies small ones. Linux only.
"""

from __future__ import annotations

import base64
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from archipelago.actors.exits import exit_codes
from archipelago.actors.local_server import Server, local_server
from archipelago.pipeline.benchmark.hostile import hostile
from archipelago.pipeline.errors import EXIT_DONE, EXIT_FAILURE, UserError

REQUESTS, HOSTILE = 5000, 40
IDLE_S = 10.0  # of the quiet before each part
PAUSE_S = 0.02  # between two requests of the client who looks on
WARM = 20
MOST_GROWTH_MIB, MOST_HEALTH_MS, MOST_SMALL_MS, MOST_TIMES = 200.0, 100.0, 300.0, 3.0
PATIENCE_S = 120.0


@dataclass
class Watched:
    """What a client saw who asked the same again and again."""

    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def p99(self) -> float:
        """Milliseconds; 0 where nothing was seen."""
        return float(np.percentile(self.milliseconds, 99)) if self.milliseconds else 0.0


@contextmanager
def watching(ask: Callable[[httpx2.Client], httpx2.Response], url: str) -> Iterator[Watched]:
    """Ask on a thread of its own, until the context ends."""
    seen, end = Watched(), threading.Event()

    def work() -> None:
        with httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            while not end.wait(PAUSE_S):
                clock = time.perf_counter()
                answer = ask(client)
                seen.milliseconds.append(1000.0 * (time.perf_counter() - clock))
                seen.statuses[answer.status_code] += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def health(client: httpx2.Client) -> httpx2.Response:
    """Is it alive?"""
    return client.get("/v2/health/live")


def small_image() -> bytes:
    """A PNG file of a few kilobytes."""
    file, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def classify(client: httpx2.Client) -> httpx2.Response:
    """A small picture."""
    return send(client, SMALL)


def send(client: httpx2.Client, data: bytes) -> httpx2.Response:
    """An image as JSON."""
    return client.post("/v1/classify", json={"images": [base64.b64encode(data).decode()]})


SMALL = small_image()


def generated(server: Server, count: int) -> Counter[int]:
    """Send requests made from the OpenAPI document; returns how often each status came back."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations: list[Any] = [found.ok() for found in described.get_all_operations()]  # type: ignore[union-attr]
    statuses: Counter[int] = Counter()
    for number, operation in enumerate(operations):
        share = count // len(operations) + (number < count % len(operations))
        if not share:
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=share,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            statuses[case.call(timeout=PATIENCE_S).status_code] += 1

        before = statuses.total()
        check()
        if (missing := share - (statuses.total() - before)) > 0:
            statuses.update(_again(server, operation, missing))
    return statuses


def _again(server: Server, operation: Any, count: int) -> Counter[int]:
    """The plain request of an operation with few different ones, so often."""
    path = operation.full_path.replace("{name}", "archipelago").replace("{version}", "1")
    with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        return Counter(
            client.request(operation.method.upper(), path.replace("{index}", "0")).status_code
            for _ in range(count)
        )


def flood(url: str, count: int) -> Counter[int]:
    """So many hostile images at once; returns how often each status came back."""
    files = list(hostile().values())

    def one(number: int) -> int:
        kind = {"content-type": "image/png"}
        with httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            data = files[number % len(files)]
            return client.post("/v1/classify", content=data, headers=kind).status_code

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(one, range(count)))


def own_words(arguments: Sequence[str]) -> tuple[str, int, int]:
    """`run_dir`, `requests` and `hostile`. Raises: UserError."""
    words = {"run_dir": "", "requests": str(REQUESTS), "hostile": str(HOSTILE)}
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in words:
            raise UserError(f"{key}: unknown here; {', '.join(words)} are known")
        words[key] = value
    if not words["run_dir"]:
        raise UserError("run_dir: say which run to serve, run_dir=DIR")
    for key in ("requests", "hostile"):
        if not words[key].isdecimal():
            raise UserError(f"{key}={words[key]}: expected a whole number")
    return words["run_dir"], int(words["requests"]), int(words["hostile"])


def _quiet(ask: Callable[[httpx2.Client], httpx2.Response], server: Server) -> Watched:
    with watching(ask, server.url) as seen:
        time.sleep(IDLE_S)
    return seen


def _said(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))


@exit_codes("bench_hostile")
def main(arguments: Sequence[str]) -> int:
    """Print what was measured beside its bound; 1 where one is broken or a request got a 500."""
    run_dir, requests, count = own_words(arguments)
    table = Table("", "measured", "at most", "")
    broken = False

    def row(name: str, measured: float, most: float, unit: str, more: str = "") -> None:
        nonlocal broken
        broken = broken or measured > most
        table.add_row(name, f"{measured:.0f} {unit}", f"{most:.0f} {unit}", more)

    with local_server(run_dir) as server:
        with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
            for _ in range(WARM):
                classify(client)
        if requests:
            quiet, before = _quiet(health, server), server.memory()
            with watching(health, server.url) as seen:
                clock = time.perf_counter()
                statuses = generated(server, requests)
                seconds = time.perf_counter() - clock
            row("500s", statuses[500], 0, "", f"{_said(statuses)} in {seconds:.0f} s")
            row("memory growth", server.memory() - before, MOST_GROWTH_MIB, "MiB")
            most = max(MOST_HEALTH_MS, MOST_TIMES * quiet.p99)
            row("health p99", seen.p99, most, "ms", f"idle {quiet.p99:.1f} ms")
        if count:
            # In a process of its own: threads of one process would wait for each other here.
            with ProcessPoolExecutor(1, get_context("spawn")) as apart:
                apart.submit(hostile).result()
                quiet, before = _quiet(classify, server), server.memory()
                with watching(classify, server.url) as seen:
                    clock = time.perf_counter()
                    statuses = apart.submit(flood, server.url, count).result()
                    seconds = time.perf_counter() - clock
            most = max(MOST_SMALL_MS, MOST_TIMES * quiet.p99)
            row("small images p99", seen.p99, most, "ms", f"alone {quiet.p99:.1f} ms")
            row("small ones refused", seen.statuses.total() - seen.statuses[200], 0, "")
            row("hostile 500s", statuses[500], 0, "", f"{_said(statuses)} in {seconds:.1f} s")
            row("memory growth", server.memory() - before, MOST_GROWTH_MIB, "MiB")
    Console().print(table)
    return EXIT_FAILURE if broken else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
