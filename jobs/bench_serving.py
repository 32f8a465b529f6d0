"""Measure the endpoint on a finished run: a publication, lost processes, and many groups.

    python jobs/bench_serving.py run_dir=/data/runs/first
    python jobs/bench_serving.py run_dir=/data/runs/first parts=[publish,kill,groups,scale]

Works on a copy of the run, in an own local Ray that ends with it. Prints tables:
`publish` latency before, during and after a publication under steady load; `kill` what a killed
replica and a killed ingress cost; `groups` throughput with many synthetic groups, relative to
frozen CLIP behind the same endpoint and to the bound 1/(2-p), p = share of blocks in the trunk;
`scale` when a second replica answers under steady load of many clients, and what they notice.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from archipelago.actors.arguments import load_settings
from archipelago.actors.ray_head import RayHead, free_ports
from archipelago.pipeline.benchmark.synthetic import grow, learned
from archipelago.pipeline.errors import EXIT_DONE, EXIT_USER, UserError
from archipelago.pipeline.serving.pointer import next_pointer, write_pointer
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder

TOKEN = "bench"
PARTS = ("publish", "kill", "groups", "scale")
SIZES = (1, 8, 32, 100)
CALM_S = 8.0  # of load before and after what is measured
BATCH, SECONDS = 32, 10.0  # images a request, and time per throughput
CLIENTS, SCALE_S = 48, 180.0  # at once, and how long a second replica may take


def main(arguments: Sequence[str]) -> int:
    """Print the tables; returns the exit code."""
    console = Console(highlight=False)
    try:
        words = [word for word in arguments if not word.startswith("parts=")]
        chosen = [
            word.removeprefix("parts=").strip("[]") for word in arguments if word not in words
        ]
        parts = chosen[-1].split(",") if chosen else list(PARTS)
        if unknown := set(parts) - set(PARTS):
            raise UserError(f"parts: {unknown.pop()!r} is unknown; choose of {', '.join(PARTS)}")
        settings = load_settings(words)
        assert settings.run_dir is not None
        source = RunFolder.open(settings.run_dir)
        if source.folder.local is None or len(source.models.versions()) < 2:
            raise UserError(f"run_dir={settings.run_dir}: a local run of two stages is needed")
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"bench: {error}", markup=False)
        return EXIT_USER
    os.environ["ARCHIPELAGO_ADMIN_TOKEN"] = TOKEN
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the head is on loopback only
    with tempfile.TemporaryDirectory(prefix="archipelago-") as place:
        run = RunFolder(Path(place) / "run")
        skipped = shutil.ignore_patterns("cache", "train", "references", "serving*")
        shutil.copytree(source.folder.local, str(run.folder.local), ignore=skipped)
        with RayHead(settings.cluster.logical_cpus, settings.cluster.object_store_mib) as head:
            bench = Bench(run, settings, head, console)
            for part in parts:
                getattr(bench, part)()
    return EXIT_DONE


class Bench:
    """One endpoint on a copy of the run."""

    def __init__(self, run: RunFolder, settings: Settings, head: RayHead, console: Console) -> None:
        self.run, self.settings, self.head, self.console = run, settings, head, console
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.first = run.models.read(1).groups[0]
        probes = [task.probe.images for g in learned(run) for task in g.tasks if task.probe]
        self.images = [_png(pixels) for pixels in probes[0]]
        self.mixed = [_png(pixels) for row in zip(*probes, strict=False) for pixels in row]

    @contextlib.contextmanager
    def endpoint(self, *words: str) -> Iterator[None]:
        """The endpoint, for as long as it lasts."""
        from archipelago.jobs import serve

        own = [f"run_dir={self.run.uri}", f"serving.port={self.port}", "publish=candidate"]
        own += [f"cluster.address={self.head.address}", *words]
        if serve.main(own) != 0:
            raise RuntimeError("the endpoint did not come up")
        try:
            yield
        finally:
            serve.main([*own, "down=true"])

    def _point(self, manifest: int) -> None:
        write_pointer(self.run, next_pointer(self.run, manifest), "bench")

    def _ask(self, **more: Any) -> dict[str, Any]:
        return {"images": self.images[:1], **more}

    def publish(self) -> None:
        """Latency before, during and after a publication; every request must be answered."""
        newest = self.run.models.versions()[-1]
        self._point(newest - 1)
        name = self.run.models.read(newest).groups[-1].name
        with self.endpoint("serving.replicas_min=2", "serving.replicas_max=2"):
            with Load(self.url, self._ask(task=self.first.name)) as load:
                time.sleep(CALM_S)
                begin = time.perf_counter()
                told = post(f"{self.url}/v1/admin/publish", {"manifest": newest}, TOKEN)
                end = time.perf_counter()
                status, _ = post(f"{self.url}/v1/classify", self._ask(task=name))
                time.sleep(CALM_S)
            table = Table(title=f"A publication under load: {end - begin:.2f} s, status {told[0]}")
            for column in ("", "requests", "p50 ms", "p99 ms", "failed"):
                table.add_column(column, justify="right")
            spans = {"before": (0, begin), "during": (begin, end), "after": (end, float("inf"))}
            for label, (start, stop) in spans.items():
                table.add_row(label, *load.row(start, stop))
            self.console.print(table)
            self.console.print(f"the new domain right after the acknowledgement: status {status}")
            answers = {json.dumps(answer["results"][0]["classes"]) for answer in load.answers}
            self.console.print(f"different answers for the old domain: {len(answers)}")

    def kill(self) -> None:
        """What a killed model replica and a killed ingress cost."""
        self._point(self.run.models.versions()[-1])
        words = ("serving.replicas_min=2", "serving.replicas_max=2", "serving.ingresses=2")
        with self.endpoint(*words):
            for title in ("Replica", "Ingress"):
                with Load(self.url, self._ask(task=self.first.name)) as load:
                    time.sleep(CALM_S / 2)
                    victims = _titled(
                        self.head.processes(), f"ray::ServeReplica:archipelago:{_DEPLOYMENT[title]}"
                    )
                    begin = time.perf_counter()
                    os.kill(victims[0], signal.SIGKILL)
                    end = self._replaced(set(victims)) if title == "Replica" else None
                    time.sleep(CALM_S)
                span = "" if end is None else f", replaced after {end - begin:.1f} s"
                count, p50, p99, failed = load.row(begin, float("inf"))
                self.console.print(
                    f"{title} of two killed under load{span}: {count} requests since,"
                    f" p50 {p50} ms, p99 {p99} ms, failed {failed}"
                )
            tasks = get(f"{self.url}/v1/tasks")[1]["tasks"]
            self.console.print(f"the replacement answers for {len(tasks)} domains")

    def _replicas(self, title: str) -> list[int]:
        start = f"ray::ServeReplica:{self.settings.serving.name}:{_DEPLOYMENT[title]}"
        return _titled(self.head.processes(), start)

    def _replaced(self, before: set[int]) -> float:
        """When a new replica of the model answered for the first time."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not set(self._replicas("Replica")) - before:
            time.sleep(0.2)
        post(f"{self.url}/v1/admin/publish", {"manifest": self.run.models.versions()[-1]}, TOKEN)
        return time.perf_counter()

    def groups(self) -> None:
        """Throughput at 1, 8, 32 and 100 groups, relative to frozen CLIP."""
        self.run.folder.delete("serving.json")
        self.run.folder.delete_tree("serving")
        manifests = grow(self.run, SIZES)
        table = Table(title=f"{BATCH} images a request, a mixed batch, one replica")
        for column in ("groups", "images/s", "of frozen", "of the bound", "seen %"):
            table.add_column(column, justify="right")
        labels = [f"thing {index}" for index in range(10)]
        words = ("serving.replicas_max=1", "serving.publish_timeout_s=600")
        with self.endpoint(*words, "serving.canary.floor=0.0"):
            about = get(f"{self.url}/v1/models")[1]
            bound = 1.0 / (2.0 - trunk_share(self.run))
            frozen, _ = self._throughput({"labels": labels})
            table.add_row("frozen", f"{frozen:.1f}", "1.00", "", "")
            for size, manifest in manifests.items():
                status, told = post(
                    f"{self.url}/v1/admin/publish", {"manifest": manifest}, TOKEN, 900.0
                )
                if status != 200:
                    raise RuntimeError(f"{size} groups: {told}")
                rate, seen = self._throughput({})
                share = rate / frozen
                table.add_row(
                    str(size), f"{rate:.1f}", f"{share:.2f}", f"{share / bound:.2f}", f"{seen:.0f}"
                )
        self.console.print(table)
        self.console.print(f"bound 1/(2-p) = {bound:.3f}; {about['backbone']}")

    def _throughput(self, more: dict[str, Any]) -> tuple[float, float]:
        """Images a second of the fastest of many requests in a row, and percent seen.

        The fastest: whatever else the machine does only ever slows a request down.
        """
        images = (self.mixed * BATCH)[:BATCH]
        best, seen, count = float("inf"), 0, 0
        end = time.perf_counter() + SECONDS
        post(f"{self.url}/v1/classify", {"images": images, **more})  # encodes the labels
        while time.perf_counter() < end:
            clock = time.perf_counter()
            status, answer = post(f"{self.url}/v1/classify", {"images": images, **more})
            if status != 200:
                raise RuntimeError(str(answer))
            best = min(best, time.perf_counter() - clock)
            seen += sum(not result["unseen"] for result in answer["results"])
            count += len(images)
        return len(images) / best, 100.0 * seen / count

    def scale(self) -> None:
        """More clients than one replica is meant for: when is there a second, and does it cost?"""
        self._point(self.run.models.versions()[-1])
        with self.endpoint("serving.replicas_min=1", "serving.replicas_max=2"):
            before = set(self._replicas("Replica"))
            with Load(self.url, self._ask(task=self.first.name), CLIENTS) as load:
                begin = time.perf_counter()
                while len(self._answering()) < 2 and time.perf_counter() - begin < SCALE_S:
                    time.sleep(0.5)
                end = time.perf_counter()
                time.sleep(2 * CALM_S)
            grown = set(self._replicas("Replica")) - before
            if not grown:
                raise RuntimeError(f"no second replica within {SCALE_S:g} s")
            table = Table(title=f"{CLIENTS} clients: a second replica after {end - begin:.1f} s")
            for column in ("", "requests", "per second", "p50 ms", "p99 ms", "failed"):
                table.add_column(column, justify="right")
            now = time.perf_counter()
            for label, start, stop in (("one replica", begin, end), ("two replicas", end, now)):
                count, *rest = load.row(start, stop)
                table.add_row(label, count, f"{int(count) / (stop - start):.1f}", *rest)
            self.console.print(table)

    def _answering(self) -> set[str]:
        """Replicas that have acknowledged the generation: publishing again changes nothing."""
        manifest = {"manifest": self.run.models.versions()[-1]}
        status, told = post(f"{self.url}/v1/admin/publish", manifest, TOKEN)
        return set(told["replicas"]) if status == 200 else set()


_DEPLOYMENT = {"Replica": "Model", "Ingress": "Ingress"}


class Load:
    """Steady requests from a few threads until the context ends."""

    def __init__(self, url: str, body: dict[str, Any], threads: int = 2) -> None:
        self.url, self.body = url, body
        self.results: list[tuple[float, float, int]] = []
        self.answers: list[Any] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._end.wait(0.05):
            start = time.perf_counter()
            status, answer = post(f"{self.url}/v1/classify", self.body)
            self.results.append((start, time.perf_counter() - start, status))
            if status == 200:
                self.answers.append(answer)

    def row(self, begin: float, end: float) -> tuple[str, str, str, str]:
        """Count, p50, p99 and failures of the requests that began in a span."""
        inside = [(took, status) for start, took, status in self.results if begin <= start < end]
        times = [1000 * took for took, _ in inside] or [float("nan")]
        failed = sum(status != 200 for _, status in inside)
        p50, p99 = np.quantile(times, [0.5, 0.99])
        return str(len(inside)), f"{p50:.1f}", f"{p99:.1f}", str(failed)


def post(url: str, body: Any, token: str | None = None, timeout: float = 120.0) -> tuple[int, Any]:
    """Status (0 for a broken connection) and JSON of one POST."""
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    return _send(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout)


def get(url: str) -> tuple[int, Any]:
    """Status and JSON of one GET."""
    return _send(urllib.request.Request(url), 60.0)


def _send(request: urllib.request.Request, timeout: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def trunk_share(run: RunFolder) -> float:
    """Share of the image blocks that lie in the frozen trunk."""
    from archipelago.pipeline.methods.base import build_method
    from archipelago.pipeline.model.backbone import load_backbone
    from archipelago.pipeline.serving.model import run_settings

    settings = run_settings(run.read())
    backbone = load_backbone(settings.backbone)
    return build_method(settings, None, backbone).first_blocks[0] / backbone.image.depth


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _titled(pids: Sequence[int], title: str) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(title):
                found.append(pid)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
