"""Measure what a model of many domains costs: bytes, learning, refreshing, answering, memory.

    python jobs/bench_growth.py
    python jobs/bench_growth.py backbone=clip-tiny sizes=1,11,50,200 classes=20

Domains are synthetic: Gaussian classes in the space of compact features, stored as records of a run
in a temporary folder and opened as any run is. `backbone=vit-b-16` has random weights; costs do not
depend on them. One process; times are the fastest of several, memory is the process's own.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from archipelago.pipeline.closedform import Basis, CalibrationRows, Sums, make_basis
from archipelago.pipeline.config import load, redacted
from archipelago.pipeline.errors import EXIT_DONE, EXIT_USER, UserError
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.learned.runtime import Wish
from archipelago.pipeline.methods import build_method
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.records import GroupRecord, Probe, TaskRecord
from archipelago.pipeline.records.basis import keep_basis
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder

BACKBONES = {
    "clip-tiny": ["backbone=clip-tiny"],
    "vit-b-16": ["backbone=vit-b-16-openai", "backbone.pretrained=random"],
}
BATCH, REPEATS, IMAGES = 32, 5, 2000
WISH = Wish()
DEFAULTS = {"backbone": "vit-b-16", "sizes": "1,11,50,200", "classes": "20"}


def main(arguments: Sequence[str]) -> int:
    """Print the tables; returns the exit code."""
    console = Console(highlight=False)
    words = dict(word.partition("=")[::2] for word in arguments)
    unknown = sorted(words.keys() - DEFAULTS)
    chosen = {**DEFAULTS, **words}
    if unknown or chosen["backbone"] not in BACKBONES:
        said = (
            f"{unknown[0]}: unknown; known are {', '.join(DEFAULTS)}"
            if unknown
            else (f"backbone={chosen['backbone']}: choose one of {', '.join(BACKBONES)}")
        )
        Console(stderr=True, highlight=False).print(f"bench: {said}", markup=False)
        return EXIT_USER
    sizes = [int(size) for size in chosen["sizes"].split(",")]
    with tempfile.TemporaryDirectory(prefix="archipelago-") as place:
        world = World(Path(place), chosen["backbone"], int(chosen["classes"]))
        world.learn(console)
        table = Table(title=f"{chosen['backbone']}, {chosen['classes']} classes a domain")
        for name in (
            "domains",
            "open s",
            "refresh s",
            f"answer {BATCH} ms",
            "of it identify",
            "heads",
            "memory MiB",
        ):
            table.add_column(name, justify="right")
        for size in sizes:
            table.add_row(str(size), *world.measured(size))
            console.print(f"{size} domains: done")
        console.print(table)
    return EXIT_DONE


class World:
    """A run whose domains are made up."""

    def __init__(self, place: Path, backbone: str, classes: int) -> None:
        words = [*BACKBONES[backbone], "method.options.group=off", "tracking=off"]
        self.settings: Settings = load([*words, f"run_dir={place / 'run'}"])
        self.classes = classes
        self.run = RunFolder(place / "run")
        self.engine = Engine(EngineSpec(self.settings, self.run.uri, Kernels()))
        self.rng = np.random.default_rng(0)
        side = self.engine.backbone.image_size
        self.images = self.rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
        compact, frozen = self._seen()
        self.basis = self._basis(compact.shape[1], frozen.shape[1])
        self.refs: list[GroupRef] = []
        with self.run.lock():
            keep_basis(self.run, self.basis)
            self.run.open_run(redacted(self.settings), self._facts())
        self.embedding = frozen.shape[1]

    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw features of the images, as this backbone gives them."""
        return self.engine.raw(self.images)

    def _basis(self, width: int, embedding: int) -> Basis:
        """Of noise: as wide as a real one."""
        count = 4 * self.settings.identifier.width + 1
        seen = [(self.rng.normal(size=(count, width)), self.rng.normal(size=(count, embedding)))]
        chosen = self.settings.identifier
        return make_basis(seen, chosen.width, "noise", chosen.depths)

    def _facts(self) -> dict[str, Any]:
        return {
            "backbone": self.engine.facts() | {"basis": self.basis.digest},
            "stream": {"tasks": ["synthetic"], "stages": [["synthetic"]]},
            "kernels": Kernels().asdict(),
            "versions": {},
        }

    # -- domains -------------------------------------------------------------------------------

    def record(self, number: int) -> TaskRecord:
        """A domain of Gaussian classes."""
        width, name = self.basis.width, f"synthetic-{number:04d}"
        centre = self.rng.normal(size=width)
        means = centre + 0.6 * self.rng.normal(size=(self.classes, width))
        labels = np.arange(IMAGES) % self.classes
        compact = (means[labels] + 0.7 * self.rng.normal(size=(IMAGES, width))).astype(np.float32)
        frozen = _unit(self.rng.normal(size=(IMAGES, self.embedding))).astype(np.float32)
        text = _unit(self.rng.normal(size=(self.classes, self.embedding))).astype(np.float32)
        kept = np.arange(256)
        pixels = self.rng.integers(0, 256, (256, 4, 4, 3), dtype=np.uint8)
        rows = CalibrationRows.pick(pixels, compact[kept], frozen[kept], labels[kept], kept)
        probe = Probe(self.images[:1], np.zeros(1, np.int64), np.zeros((1, self.classes)))
        names = tuple(f"class {number} {index}" for index in range(self.classes))
        return TaskRecord(
            name,
            names,
            ("a photo of a {}.",),
            {"train": name},
            {"train": IMAGES},
            sums=Sums.of(compact, labels, self.classes),
            rows=rows,
            text_CF=text,
            probe=probe,
        )

    def grow(self, size: int) -> None:
        """Store domains until there are so many."""
        with self.run.lock():
            while len(self.refs) < size:
                number = len(self.refs)
                record = self.record(number)
                group = GroupRecord(number, record.name, "archipelago", (record,))
                stored = group.write(self.run.groups)
                assert stored.ref is not None
                self.refs.append(stored.ref)
            self.run.models.publish(self.refs[:size])

    # -- what it costs -------------------------------------------------------------------------

    def learn(self, console: Console) -> None:
        """Bytes of a domain and seconds to learn it."""
        record = self.record(0)
        compact = self.rng.normal(size=(IMAGES, self.basis.width)).astype(np.float32)
        labels = np.arange(IMAGES) % self.classes
        seen = _fastest(self._seen)
        summed = _fastest(lambda: Sums.of(compact, labels, self.classes))
        method = build_method(self.settings, self.basis, scale=100.0)
        headed = _fastest(lambda: _fitted(method, record))
        files = GroupRecord(0, record.name, "archipelago", (record,)).files()
        sizes = {name: len(data) for name, data in files.items()}
        rows = sum(array.nbytes for array in record.rows.arrays().values()) if record.rows else 0
        sums = record.sums.arrays() if record.sums else {}
        scatter = max(array.nbytes for array in sums.values())
        others = sizes["identity.safetensors"] - rows - scatter
        console.print(
            f"a domain: {sizes['identity.safetensors'] / 1e6:.2f} MB = scatter"
            f" {scatter / 1e6:.2f} MB + {others / 1e3 / self.classes:.1f} kB a class + rows"
            f" {rows / 1e6:.2f} MB"
        )
        console.print(
            f"learning {IMAGES} images: features {seen / BATCH * 1e3:.1f} ms an image"
            f" ({seen / BATCH * IMAGES:.1f} s), sums {summed:.2f} s, head {headed:.2f} s"
        )

    def measured(self, size: int) -> list[str]:
        """Seconds to open and to take up one more domain, milliseconds of a batch, memory."""
        self.grow(size)
        clock = time.perf_counter()
        model = LearnedModel.open(self.run.uri)
        model.answer(self.images)
        opened = time.perf_counter() - clock
        state, texts = model.state, model.runtime.texts(model.state)
        spent: list[dict[str, float]] = []
        for _ in range(REPEATS):
            clock = time.perf_counter()
            found = model.runtime.answer(state, texts, self.images, [WISH] * BATCH)[1]
            spent.append({**found, "all": 1000.0 * (time.perf_counter() - clock)})
        best = {key: min(each[key] for each in spent) for key in spent[0]}
        self.grow(size + 1)
        clock = time.perf_counter()
        fresh = model.runtime.state(self.refs[: size + 1])
        model.runtime.answer(fresh, model.runtime.texts(fresh), self.images, [WISH] * BATCH)
        refreshed = time.perf_counter() - clock - best["all"] / 1000.0
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
        heads = best["groups"] + best["text"]
        return [
            f"{opened:.1f}",
            f"{refreshed:.1f}",
            f"{best['all']:.0f}",
            f"{best['identify']:.0f}",
            f"{heads:.0f}",
            f"{memory:.0f}",
        ]


def _fitted(method: Any, record: TaskRecord) -> None:
    record.derived.clear()
    method.head(record)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _fastest(call: Callable[[], Any]) -> float:
    """Wall seconds of the fastest of several calls."""
    taken = []
    for _ in range(REPEATS):
        clock = time.perf_counter()
        call()
        taken.append(time.perf_counter() - clock)
    return min(taken)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"bench: {error}", markup=False)
        sys.exit(EXIT_USER)
