"""Reader `scenes`: five dense tasks over the same rendered images, nothing to download.

`stream.options`: `train` and `test` (images of a split). The images follow the run's seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from archipelago.pipeline.streams.files import combine
from archipelago.pipeline.streams.registry import read_options, register
from archipelago.pipeline.streams.scenes import NAMES, TASKS, VERSION, render

CHUNK_ROWS = 50
OPTIONS = {"train": 600, "test": 200}


@dataclass(frozen=True)
class ScenesChunk:
    """Images [start, stop) of one split, rendered when they are read."""

    split: str
    seed: int
    start: int
    stop: int

    def rows(self) -> Iterator[RawRow]:
        """Render the range in order, with all targets."""
        for index in range(self.start, self.stop):
            image, targets = render(self.seed, self.split, index)
            yield RawRow(index, image, None, targets)


@register("scenes")
class ScenesReader:
    """Edges, normals, parts, saliency and semantic segmentation of the same scenes."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        for split in SPLITS:
            if self.options[split] < 1:
                raise UserError(f"stream.options.{split}: ask for one image or more")
        self.splits = {split: self._split(split, seed) for split in SPLITS}

    def names(self) -> list[str]:
        """The five tasks, alphabetical."""
        return sorted(NAMES)

    def domain(self, name: str) -> Domain:
        """One task; all of them share the images."""
        kind = next(task.kind for task in TASKS if task.name == name)
        return Domain(
            *(name, NAMES[name], (), self.splits, "rendered by archipelago", "Apache-2.0", kind)
        )

    def _split(self, name: str, seed: int) -> Split:
        count = self.options[name]
        chunks = tuple(
            ScenesChunk(name, seed, start, min(start + CHUNK_ROWS, count))
            for start in range(0, count, CHUNK_ROWS)
        )
        facts = ["scenes", VERSION, name, seed, count, [asdict(task) for task in TASKS]]
        return Split(name, chunks, count, combine(*facts), TASKS)
