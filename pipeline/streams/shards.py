"""One unit of decoding: read a chunk, decode its rows, write one shard.

It may run on any node and any number of times: the shard appears whole or not at all, with the
same bytes every time.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.streams.decode import BadImage, decode, fit
from pipeline.streams.domain import Chunk, RawRow
from pipeline.streams.inflight import DEATHS, NOTHING, InFlight
from pipeline.streams.table import shard_schema

BATCH_ROWS = 64  # decoded rows held in memory while a shard is written


@dataclass(frozen=True)
class ShardJob:
    """Everything a task needs. `folder` must be visible to every node."""

    chunk: Chunk
    folder: str
    file: str
    classes: int
    size: int
    max_pixels: int


@dataclass(frozen=True)
class ShardResult:
    """What a task wrote, and the rows that it could not use as (row, reason)."""

    file: str
    rows: int
    bytes: int
    bad: list[tuple[int, str]] = field(default_factory=list)


def write_shard(job: ShardJob) -> ShardResult:
    """Decode a chunk into `<folder>/<file>`; raises OSError where source or target fail."""
    target = Path(job.folder) / job.file
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{target.parent} is not there on this node; "
            "set cluster.cache_dir to a folder that every node sees"
        )
    temporary = target.with_name(f".{job.file}.{uuid.uuid4().hex}")
    schema = shard_schema(job.size)
    bad: list[tuple[int, str]] = []
    rows = 0
    flight = InFlight(target)
    try:
        with temporary.open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of every odd file that it copes with
            with pa.ipc.new_file(file, schema) as writer:
                for batch in _batches(job, schema, bad, flight):
                    writer.write_batch(batch)
                    rows += len(batch)
            file.flush()
            os.fsync(file.fileno())
        written = temporary.stat().st_size
        temporary.replace(target)
        flight.clear()
    finally:
        temporary.unlink(missing_ok=True)
    return ShardResult(job.file, rows, written, bad)


def _batches(
    job: ShardJob, schema: pa.Schema, bad: list[tuple[int, str]], flight: InFlight
) -> Iterator[pa.RecordBatch]:
    usable = _usable(job, bad, flight)
    while rows := list(islice(usable, BATCH_ROWS)):
        pixels = np.stack([image for image, _, _ in rows])
        images = pa.FixedSizeBinaryArray.from_buffers(
            schema.field("image").type, len(rows), [None, pa.py_buffer(pixels)]
        )
        labels = pa.array([label for _, label, _ in rows], pa.int64())
        indices = pa.array([index for _, _, index in rows], pa.int64())
        yield pa.record_batch([images, labels, indices], schema=schema)


def _usable(
    job: ShardJob, bad: list[tuple[int, str]], flight: InFlight
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield (image, label, row); rows that cannot be used are noted in `bad` instead."""
    for row in job.chunk.rows():
        try:
            if row.index in flight.blamed:
                raise BadImage(f"decoding it killed {DEATHS} workers")
            flight.enter(row.index)
            label = _label(row, job.classes)
            if isinstance(row.image, np.ndarray):
                pixels = fit(row.image, job.size)
            else:
                pixels = fit(decode(row.image, job.max_pixels), job.size)
        except BadImage as error:
            bad.append((row.index, str(error)))
        else:
            flight.enter(NOTHING)
            yield pixels, label, row.index


def _label(row: RawRow, classes: int) -> int:
    if row.label is None:
        raise BadImage("no label (null, or no known class)")
    if not 0 <= row.label < classes:
        raise BadImage(f"label {row.label} is outside 0..{classes - 1}")
    return int(row.label)
