"""One unit of decoding: read a chunk, decode its rows, write one shard.

It may run on any node and any number of times: the shard appears whole or not at all, with the
same bytes every time.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from archipelago.pipeline.streams.decode import BadImage, decode, fit
from archipelago.pipeline.streams.domain import Chunk, RawRow
from archipelago.pipeline.streams.inflight import DEATHS, NOTHING, InFlight
from archipelago.pipeline.streams.remote import is_remote, put_shard, shard_folder
from archipelago.pipeline.streams.table import shard_schema
from archipelago.pipeline.streams.targets import Target, Unusable

NO_CLASS = -1  # label of rows whose targets are dense
BATCH_ROWS = 64  # decoded rows held in memory while a shard is written


@dataclass(frozen=True)
class ShardJob:
    """Everything a task needs. `folder` must be visible to every node, or in an object store."""

    chunk: Chunk
    folder: str
    file: str
    classes: int
    size: int
    max_pixels: int
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class ShardResult:
    """What a task wrote, and the rows that it could not use as (row, reason).

    `bad_targets` has, by dense task, the rows whose image is usable but whose target is not.
    """

    file: str
    rows: int
    bytes: int
    bad: list[tuple[int, str]] = field(default_factory=list)
    bad_targets: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Row:
    """A usable row, decoded."""

    image: np.ndarray
    label: int
    index: int
    targets: dict[str, np.ndarray]


def write_shard(job: ShardJob) -> ShardResult:
    """Decode a chunk into `<folder>/<file>`; raises OSError where source or target fail."""
    if not is_remote(job.folder):
        return _write(job, Path(job.folder) / job.file)
    with shard_folder(job.folder) as folder:
        result = _write(job, folder / job.file)
        put_shard(job.folder, folder / job.file)
    return result


def _write(job: ShardJob, target: Path) -> ShardResult:
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{target.parent} is not there on this node; "
            "set cluster.cache_dir to a folder that every node sees"
        )
    temporary = target.with_name(f".{job.file}.{uuid.uuid4().hex}")
    schema = shard_schema(job.size, job.targets)
    result = ShardResult(job.file, 0, 0, [], {target.name: [] for target in job.targets})
    rows = 0
    flight = InFlight(target)
    try:
        with temporary.open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of every odd file that it copes with
            with pa.ipc.new_file(file, schema) as writer:
                for batch in _batches(job, schema, result, flight):
                    writer.write_batch(batch)
                    rows += len(batch)
            file.flush()
            os.fsync(file.fileno())
        written = temporary.stat().st_size
        temporary.replace(target)
        flight.clear()
    finally:
        temporary.unlink(missing_ok=True)
    return replace(result, rows=rows, bytes=written)


def _batches(
    job: ShardJob, schema: pa.Schema, result: ShardResult, flight: InFlight
) -> Iterator[pa.RecordBatch]:
    usable = _usable(job, result, flight)
    while rows := list(islice(usable, BATCH_ROWS)):
        pixels = np.stack([row.image for row in rows])
        images = pa.FixedSizeBinaryArray.from_buffers(
            schema.field("image").type, len(rows), [None, pa.py_buffer(pixels)]
        )
        labels = pa.array([row.label for row in rows], pa.int64())
        indices = pa.array([row.index for row in rows], pa.int64())
        targets = [_column(target, rows, job.size) for target in job.targets]
        yield pa.record_batch([images, labels, indices, *targets], schema=schema)


def _column(target: Target, rows: list[_Row], size: int) -> pa.Array:
    """Targets as stored; null where a row has none, its bytes those of a blank target."""
    blank = target.blank(size)
    values = np.stack([row.targets.get(target.name, blank) for row in rows])
    there = pa.array([target.name in row.targets for row in rows])
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(target.bytes(size)), len(rows), [there.buffers()[1], pa.py_buffer(values)]
    )


def _usable(job: ShardJob, result: ShardResult, flight: InFlight) -> Iterator[_Row]:
    """Yield rows decoded; those that cannot be used are noted in the result instead."""
    for row in job.chunk.rows():
        try:
            if row.index in flight.blamed:
                raise BadImage(f"decoding it killed {DEATHS} workers")
            if row.fault:
                raise BadImage(row.fault)
            flight.enter(row.index)
            label = NO_CLASS if job.targets else _label(row, job.classes)
            if isinstance(row.image, np.ndarray):
                source, pixels = row.image.shape[:2], fit(row.image, job.size)
            else:
                image = decode(row.image, job.max_pixels)
                source, pixels = (image.height, image.width), fit(image, job.size)
            targets = _targets(job, row, source, result)
        except BadImage as error:
            result.bad.append((row.index, str(error)))
        else:
            flight.enter(NOTHING)
            yield _Row(pixels, label, row.index, targets)


def _targets(
    job: ShardJob, row: RawRow, source: tuple[int, int], result: ShardResult
) -> dict[str, np.ndarray]:
    """The row's usable targets; the others are noted with their reasons."""
    usable = {}
    for target in job.targets:
        value = target.fit(row.targets.get(target.name), source, job.size)
        if isinstance(value, Unusable):
            result.bad_targets[target.name].append((row.index, value.reason))
        else:
            usable[target.name] = value
    return usable


def _label(row: RawRow, classes: int) -> int:
    if row.label is None:
        raise BadImage("no label (null, or no known class)")
    if not 0 <= row.label < classes:
        raise BadImage(f"label {row.label} is outside 0..{classes - 1}")
    return int(row.label)
