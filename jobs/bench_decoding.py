"""What one image of each format and mode takes to decode at `serving.max_pixels`.

    python jobs/bench_decoding.py
    python jobs/bench_decoding.py serving.max_pixels=12000000

Peak memory beyond an idle process, what its header promises (`actors/http/pixels.py`), CPU seconds,
and whether the endpoint would read it with these settings. Linux only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from archipelago.actors.exits import exit_codes
from archipelago.actors.http.pixels import Cost, look
from archipelago.actors.http.problems import Problem
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import EXIT_DONE
from archipelago.pipeline.settings import ServingSettings
from archipelago.pipeline.streams.decode import BadImage, decode, fit

SIZE = 224
EVERYTHING = ServingSettings(decode_mib=2**20, max_pixels=2**31)


@dataclass(frozen=True)
class Case:
    """A kind of file: how Pillow writes it."""

    name: str
    mode: str
    kind: str
    options: dict[str, Any]


CASES = (
    Case("JPEG", "RGB", "JPEG", {}),
    Case("JPEG, progressive", "RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    Case("JPEG, CMYK", "CMYK", "JPEG", {}),
    Case("PNG", "RGB", "PNG", {"compress_level": 1}),
    Case("PNG, grey", "L", "PNG", {"compress_level": 1}),
    Case("PNG, palette", "P", "PNG", {"compress_level": 1}),
    Case("PNG, alpha", "RGBA", "PNG", {"compress_level": 1}),
    Case("PNG, 16 bits", "I;16", "PNG", {"compress_level": 1}),
    Case("GIF", "P", "GIF", {}),
    Case("GIF, transparent", "P", "GIF", {"transparency": 1}),
    Case("BMP", "RGB", "BMP", {}),
    Case("TIFF", "RGB", "TIFF", {"compression": "tiff_deflate"}),
    Case("TIFF, alpha", "RGBA", "TIFF", {"compression": "tiff_lzw"}),
    Case("TIFF, float", "F", "TIFF", {"compression": "tiff_deflate"}),
    Case("WEBP", "RGB", "WEBP", {"method": 0, "quality": 10}),
    Case("WEBP, alpha", "RGBA", "WEBP", {"lossless": True, "method": 0, "quality": 0}),
    Case("AVIF", "RGB", "AVIF", {"speed": 10}),
    Case("AVIF, alpha", "RGBA", "AVIF", {"speed": 10}),
    Case("JPEG2000", "RGB", "JPEG2000", {"quality_mode": "rates", "quality_layers": [40]}),
    Case("JPEG2000, alpha", "RGBA", "JPEG2000", {"quality_mode": "rates", "quality_layers": [40]}),
)


def drawn(mode: str, side: int) -> Image.Image:
    """A square picture with something to decode everywhere: a small pattern, repeated."""
    if mode == "F":
        return Image.fromarray(np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side))
    if mode == "I;16":
        values = np.arange(side * side, dtype=np.uint32) % 2**16
        return Image.fromarray(values.astype(np.uint16).reshape(side, side))
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    tile = Image.fromarray(noise).resize((256, 256))
    whole = Image.new("RGBA" if mode == "RGBA" else "RGB", (side, side))
    tile = tile.convert(whole.mode)
    for top in range(0, side, 256):
        for left in range(0, side, 256):
            whole.paste(tile, (left, top))
    return whole if whole.mode == mode else whole.convert(mode)


def written(case: Case, side: int) -> bytes:
    """The file of a case, written elsewhere: what is measured begins with little memory."""
    with tempfile.TemporaryDirectory(prefix="archipelago-") as folder:
        file = Path(folder) / "file"
        apart(lambda: drawn(case.mode, side).save(file, case.kind, **case.options))
        return file.read_bytes()


@dataclass(frozen=True)
class Figure:
    """Measured: bytes beyond an idle process at the peak, and CPU seconds."""

    peak: int
    seconds: float


def apart(work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON, in a process of its own that leaves no memory behind."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(there, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said)


def measure(data: bytes) -> Figure:
    """Decode once in a process of its own."""

    def work() -> list[float]:
        def held(name: str) -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

        fit(Image.new("RGB", (64, 48)), 32)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, clock = held("VmRSS"), time.process_time()
        try:
            fit(decode(data, EVERYTHING.max_pixels), SIZE)
        except BadImage:
            return [-1, 0.0]
        return [held("VmHWM") - before, time.process_time() - clock]

    peak, seconds = apart(work)
    return Figure(int(peak), seconds)


def figures(pixels: int) -> Iterator[tuple[Case, bytes, Figure, Cost]]:
    """Every case that this build of Pillow can write."""
    Image.init()
    for case in CASES:
        if case.kind in Image.SAVE:
            data = written(case, int(pixels**0.5))
            yield case, data, measure(data), look(data, EVERYTHING, 2**40)


@exit_codes("bench_decoding")
def main(arguments: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    serving = load(arguments).serving
    table = Table("format", "file MiB", "peak MiB", "promised MiB", "CPU s", "over HTTP")
    for case, data, figure, cost in figures(serving.max_pixels):
        try:
            most = serving.decode_mib * 2**20
            answer = "read" if look(data, serving, most).memory <= most else "413"
        except Problem as problem:
            answer = str(problem.code)
        if len(data) > serving.max_body_mib * 2**20:
            answer = "413 (body)"
        sizes = [f"{size / 2**20:.0f}" for size in (len(data), figure.peak, cost.memory)]
        table.add_row(case.name, *sizes, f"{figure.seconds:.1f}", answer)
    Console().print(table)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
