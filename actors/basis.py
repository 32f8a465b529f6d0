"""A basis for a backbone that brings none: made once for a run, from the embedded stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from archipelago.actors.arguments import cache_dir
from archipelago.pipeline.closedform import Basis, make_basis
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifiers.basis import save_basis
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.model.kernels import Kernels, resolve_device
from archipelago.pipeline.pace import Pace
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, open_stream, prepare
from archipelago.pipeline.streams.decode import decode, fit

log = logging.getLogger("archipelago")

PER_FILE = 1500  # images taken from each file, so that no kind outweighs the others
BATCH = 128
IMAGES = 600  # of the embedded stream: a pass of a large CLIP over more takes long on a CPU


def basis_of_atlas(
    run: RunFolder, settings: Settings, engine: Any, size: int, tasks: list[str]
) -> Basis:
    """A basis from images of the embedded stream.

    Args:
        run: the run folder, locked.
        settings: of the run.
        engine: encodes.
        size: side of the backbone's input.
        tasks: names of the tasks that the run learns.
    """
    log.info("the backbone brings no basis for these settings: making one from atlas")
    stream, cluster = load(["stream=atlas"]).stream, settings.cluster
    atlas = prepare(
        open_stream(stream, 0),
        size=size,
        run=run.uri,
        cache_dir=cache_dir(settings),
        cache_gib=cluster.cache_gib,
        cluster=cluster,
        max_pixels=stream.max_pixels,
        use_ray=cluster.data.num_workers > 0,
    )
    share = max(1, IMAGES // len(atlas))
    batches = []
    for domain in atlas:
        count = len(ImageTable.open(domain.tables["train"]))
        rows = np.unique(np.linspace(0, count - 1, share).astype(np.int64))
        batches.append(engine.raw_rows(domain.tables["train"], rows))
    which = settings.identifier.depths
    basis = make_basis(batches, settings.identifier.width, "the embedded stream atlas", which)
    if (weak := basis.weakness()) is not None:
        log.warning("backbone.basis: %s; give a better one, made with jobs/basis.py", weak)
    same = sorted({domain.name for domain in atlas} & set(tasks))
    if settings.stream.options.get("set") == "atlas" or same:
        log.warning(
            "backbone.basis: made from %s, which this run learns", ", ".join(same) or "atlas"
        )
    return basis


def basis_of_files(images: Path, target: Path, words: Sequence[str]) -> Basis:
    """Make and write a basis from parquet files with an `image` column.

    Args:
        images: a folder of them, of many kinds and of no stream.
        target: the file to write.
        words: settings: which backbone, how wide.

    Raises:
        UserError: there are no parquet files.
    """
    files = sorted(images.glob("*.parquet"))
    if not files:
        raise UserError(f"{images}: no parquet files there")
    settings = load(words)
    kernels = Kernels(device=resolve_device("auto"))
    engine = Engine(EngineSpec(settings, str(target.parent.absolute()), kernels))
    pace = Pace("images for the basis", len(files), "files")
    batches = (engine.raw(batch) for batch in _batches(files, engine, pace))
    source = f"{len(files)} files of images"
    basis = make_basis(batches, settings.identifier.width, source, settings.identifier.depths)
    save_basis(target, basis)
    return basis


def _batches(files: Sequence[Path], engine: Engine, pace: Pace) -> Iterator[np.ndarray]:
    settings = engine.settings
    size = engine.backbone.image_size
    for file in files:
        column = pq.read_table(file, columns=["image"])["image"]
        rows = np.random.default_rng(0).permutation(len(column))[:PER_FILE]
        pixels = []
        for row in rows:
            value = column[int(row)].as_py()
            data = value["bytes"] if isinstance(value, dict) else value
            pixels.append(fit(decode(data, settings.stream.max_pixels), size))
        yield from (np.stack(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH))
        pace.step(1)
