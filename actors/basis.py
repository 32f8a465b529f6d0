"""A basis for a backbone that brings none: made once for a run, from the embedded stream."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from archipelago.actors.arguments import cache_dir
from archipelago.pipeline.closedform import Basis, make_basis
from archipelago.pipeline.config import load
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, open_stream, prepare

log = logging.getLogger("archipelago")

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
        open_stream(stream, 0), size=size, run=run.uri, cache_dir=cache_dir(settings),
        cache_gib=cluster.cache_gib, cluster=cluster, max_pixels=stream.max_pixels,
        use_ray=cluster.data.num_workers > 0,
    )  # fmt: skip
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
