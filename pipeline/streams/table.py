"""Decoded images of one split on disk: Arrow shards, memory-mapped and read by index."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.streams.groups import shared
from archipelago.pipeline.streams.marker import COMPLETE, read_marker
from archipelago.pipeline.streams.remote import local_copy
from archipelago.pipeline.streams.selection import SUFFIX, Selection
from archipelago.pipeline.streams.targets import Target


def shard_schema(size: int, targets: Sequence[Target] = ()) -> pa.Schema:
    """Columns of a shard: pixels (S*S*3 bytes, row-major RGB), label, row of the source split, and
    one for each dense target, null where a row has none."""
    return pa.schema(
        [
            pa.field("image", pa.binary(size * size * 3), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            *(pa.field(column(t.name), pa.binary(t.bytes(size))) for t in targets),
        ]
    )


def column(target: str) -> str:
    """Name of the column that holds a dense target."""
    return f"target:{target}"


class ImageTable:
    """The images of one split, or some of them; opening maps files, reading copies what is needed.

    `path` is the folder of the split, or the file of a `Selection` in it; what lies in an object
    store is copied to this node first.

    Attributes:
        labels: (N,) int64 class of each image.
        rows: (N,) int64 row of the source split (quarantined rows are missing).
        groups: (N,) int64, rows of one number belong together; None where every row is alone.
        digest: content digest of the source split, or of the selection.
        size: S, images are S x S.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        file = local_copy(path)
        folder = file.parent if file.name.endswith(SUFFIX) else file
        self._lock = _hold(folder / COMPLETE)
        marker = read_marker(folder)
        if marker is None:
            raise UserError(f"{path}: no complete image cache; run again to prepare it")
        self.digest: str = marker["digest"]
        self.size: int = marker["size"]
        self.marker = marker
        self._parts: list[np.ndarray] = []
        self._batches: list[pa.RecordBatch] = []
        labels, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for shard in marker["shards"]:
            for batch in _batches(folder / shard["file"]):
                self._batches.append(batch)
                pixels = np.frombuffer(batch.column("image").buffers()[1], np.uint8)
                pixels = pixels[: len(batch) * self.size * self.size * 3]
                self._parts.append(pixels.reshape(len(batch), self.size, self.size, 3))
                labels.append(batch.column("label").to_numpy())
                rows.append(batch.column("row").to_numpy())
        self.labels = np.concatenate(labels)
        self.rows = np.concatenate(rows)
        self._ends = np.cumsum([len(part) for part in self._parts])
        if len(self.labels) != marker["rows"]:
            raise IntegrityError(f"{path}: {len(self.labels)} images, expected {marker['rows']}")
        self.groups: np.ndarray | None = None
        self._taken: np.ndarray | None = None
        if folder != file:
            self._select(Selection.read(file))

    def _select(self, selection: Selection) -> None:
        """Keep some rows only, under labels of their own."""
        self._taken = selection.positions(self.rows)
        if len(self._taken) != len(selection.rows):
            raise IntegrityError(f"{self.path}: selects rows that its table does not hold")
        self.digest = selection.digest
        self.labels = selection.places(self.labels[self._taken])
        self.rows = self.rows[self._taken]
        self.groups = shared(selection.groups_of(self.rows))

    @classmethod
    def open(cls, path: str) -> ImageTable:
        """Map a table; raises UserError where none is complete, IntegrityError where it is torn."""
        return cls(path)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Copy images by position, in the order asked for.

        Args:
            indices: (n,) integers in [0, N).

        Returns:
            (n, S, S, 3) uint8.

        Raises:
            IndexError: for a position outside the table.
        """
        return self._gather(self._parts, indices)

    def _gather(self, parts: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
        """Rows by position out of arrays that lie behind one another, one a batch of a shard."""
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"image index outside 0..{len(self) - 1} in {self.path}")
        if not parts:
            return np.empty((0, self.size, self.size, 3), np.uint8)
        out = np.empty((len(indices), *parts[0].shape[1:]), parts[0].dtype)
        if self._taken is not None:
            indices = self._taken[indices]
        homes = np.searchsorted(self._ends, indices, side="right")
        for home in np.unique(homes):
            here = homes == home
            part = parts[home]
            out[here] = part[indices[here] - (self._ends[home] - len(part))]
        return out


def _batches(path: Path) -> list[pa.RecordBatch]:
    try:
        with pa.memory_map(str(path)) as file:  # buffers keep the mapping, not the descriptor
            reader = pa.ipc.open_file(file)
            return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: damaged shard: {error}") from None


class _Held:
    """A shared lock on an entry: while any process has it open, the budget spares the entry."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def _hold(marker: Path) -> _Held | None:
    try:
        descriptor = os.open(marker, os.O_RDONLY)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(marker)
    return _Held(descriptor)
