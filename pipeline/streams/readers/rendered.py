"""Reader `rendered`: domains painted on demand, nothing to download.

`stream.options`: `set` (only `atlas` so far), `train` and `test` (images of a split, of every
domain; each class gets the same number, give or take one). The images follow the run's seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.atlas import SCENES, VERSION
from archipelago.pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from archipelago.pipeline.streams.registry import read_options, register

CHUNK_ROWS = 120
OPTIONS = {"set": "atlas", "train": 720, "test": 240}
SETS = {"atlas": SCENES}


@dataclass(frozen=True)
class RenderedChunk:
    """Images [start, stop) of one split, painted when they are read."""

    set: str
    domain: str
    split: str
    seed: int
    start: int
    stop: int

    def rows(self) -> Iterator[RawRow]:
        """Paint the range in order: arrays (64, 64, 3) uint8."""
        scene = SETS[self.set][self.domain]
        for index in range(self.start, self.stop):
            image, label = scene.render(self.seed, self.split, index)
            yield RawRow(index, image, label)


@register("rendered")
class RenderedReader:
    """The domains of one rendered set."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        self.seed = seed
        if self.options["set"] not in SETS:
            raise UserError(
                f"stream.options.set: no set {self.options['set']!r}; known are {', '.join(SETS)}"
            )
        self.scenes = SETS[self.options["set"]]

    def names(self) -> list[str]:
        """All domains of the set, alphabetical."""
        return sorted(self.scenes)

    def domain(self, name: str) -> Domain:
        """Describe one domain; raises UserError where a split is smaller than the class list."""
        scene = self.scenes[name]
        splits = {split: self._split(name, split) for split in SPLITS}
        return Domain(name, scene.classes, scene.templates, splits, scene.source, scene.licence)

    def _split(self, name: str, split: str) -> Split:
        count, classes = self.options[split], len(self.scenes[name].classes)
        if count < classes:
            raise UserError(
                f"stream.options.{split}: {count} images are too few for the {classes} classes of "
                f"{name!r}; ask for {classes} or more"
            )
        chunks = tuple(
            RenderedChunk(
                self.options["set"], name, split, self.seed, start, min(start + CHUNK_ROWS, count)
            )
            for start in range(0, count, CHUNK_ROWS)
        )
        facts = [self.options["set"], VERSION, name, split, self.seed, count]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return Split(split, chunks, count, digest)
