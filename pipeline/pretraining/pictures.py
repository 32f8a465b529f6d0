"""The pictures that a model learns from: a corpus of parquet files, and renderers; some are worn.

Every picture is a pure function of (seed, source, index). Nothing here knows a stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.pretraining.renderers import RENDERERS
from archipelago.pipeline.pretraining.settings import PictureSettings
from archipelago.pipeline.pretraining.wear import wear
from archipelago.pipeline.streams.decode import decode, fit

SIZE = 64
MAX_PIXELS = 20_000_000
# What kind of picture a corpus file holds; the names of its pictures are its captions.
FILES = {
    "clothing": "clothes",
    "emoji": "icon",
    "fashion-products": "product",
    "flickr8k": "people",
    "flowers5": "flower",
    "grocery": "grocery",
    "imagenet-samples": "object",
    "intel-scenes": "scene",
    "pacs-cartoons": "cartoon",
    "pacs-paintings": "painting",
    "quickdraw-sketches": "sketch",
    "rendered-glyphs-shapes-textures": "",
    "rendered-road-signs": "sign",
    "rsscn7-aerial": "aerial",
    "stamps": "clipart",
    "tiny-imagenet": "object",
}
# The one mixed file: the first of these words that its captions hold says which kind it is.
WORDS = (
    ("geometric shape", "shape"),
    ("digit", "character"),
    ("number", "character"),
    ("letter", "character"),
    ("", "pattern"),
)


@dataclass(frozen=True)
class Picture:
    """One picture and what is known of it: pixels uint8 (SIZE, SIZE, 3), kind, possible names."""

    pixels: np.ndarray
    kind: str
    names: tuple[str, ...] = ()


def generator(*key: object) -> np.random.Generator:
    """Random numbers that depend on `key` alone."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


def corpus_files(settings: PictureSettings) -> dict[str, Path]:
    """The files of the corpus by name.

    Raises:
        UserError: no corpus was given, or the folder lacks one of its files.
    """
    if settings.corpus is None:
        raise UserError(
            "pictures.corpus: must be given, as pictures.corpus=DIR, a folder of parquet files with"
            " columns image and captions; no training pictures are shipped"
        )
    folder = Path(settings.corpus)
    found = {name: folder / f"{name}.parquet" for name in FILES}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        raise UserError(f"pictures.corpus={folder}: lacks {', '.join(missing)}")
    return found


Make = Callable[[int | None], list[Picture]]


def sources(settings: PictureSettings, seed: int) -> Iterator[tuple[str, Make]]:
    """Every source by name, with a function that makes its first so many pictures (None = all)."""
    for name, path in corpus_files(settings).items():
        yield name, partial(_from_file, settings, seed, name, path)
    for name in RENDERERS:
        yield name, partial(_from_renderer, settings, seed, name)


def rendered(name: str, count: int, seed: int, worn: float = 0.0) -> list[Picture]:
    """`count` pictures of one of our own renderers."""
    pictures = []
    for index in range(count):
        dice = generator(seed, name, index)
        pictures.append(_worn(dice, Picture(RENDERERS[name](dice), name), worn))
    return pictures


def _from_renderer(
    settings: PictureSettings, seed: int, name: str, limit: int | None
) -> list[Picture]:
    count = settings.rendered if limit is None else min(limit, settings.rendered)
    return rendered(name, count, seed, settings.worn)


def _from_file(
    settings: PictureSettings, seed: int, name: str, path: Path, limit: int | None
) -> list[Picture]:
    table = pq.read_table(path, columns=["image", "captions"])
    order = sorted(generator(seed, name).permutation(len(table))[: settings.per_kind])
    return [_row(table, seed, name, int(row), settings.worn) for row in order[:limit]]


def _row(table: Any, seed: int, name: str, row: int, worn: float) -> Picture:
    captions = tuple(text.strip().rstrip(".").strip() for text in table["captions"][row].as_py())
    pixels = fit(decode(table["image"][row].as_py()["bytes"], MAX_PIXELS), SIZE)
    joined = " ".join(captions).lower()
    kind = FILES[name] or next(kind for word, kind in WORDS if word in joined)
    return _worn(generator(seed, name, row), Picture(pixels, kind, captions), worn)


def _worn(dice: np.random.Generator, picture: Picture, share: float) -> Picture:
    if dice.random() >= share:
        return picture
    return Picture(wear(dice, picture.pixels), picture.kind, picture.names)
