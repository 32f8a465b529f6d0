"""Units of work: some images that are answered together and whose answers are one output file.

A unit's name is a digest of what it reads, so the output's file names say what is done. Files are
cut into units where the hash of a path says so, not every so many files: an image that comes, goes
or changes gives a new name to the unit it falls into, and leaves all others as they are. Units of
a parquet file are ranges of its rows; when the file changes, all of them get new names.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from posixpath import basename, dirname
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.files import Entry, Root, combine, one_line, shown
from archipelago.pipeline.streams.linked import NoFile, bytes_and_path, resolve

DIGEST = 20  # hex digits of a name
BATCH = 32  # rows of a table in memory at once, encoded
PIXEL_BYTES = 64 * 2**20  # decoded images of a unit: what a reader holds, and passes on as one
MOST, LEAST = 1024, 32  # images of a unit
STEM = 60  # characters of a table's name in those of its units


@dataclass(frozen=True)
class Unit:
    """Some images: a stable name, and how many they are."""

    name: str
    images: int


class Encoded(NamedTuple):
    """An image as it is stored.

    Attributes:
        path: what names it in the output.
        data: the file's bytes; None where there are none.
        fault: why it cannot be read; empty = it could.
    """

    path: str
    data: bytes | None
    fault: str = ""


class Part(Protocol):
    """What one task reads: one unit, or several that lie in one large row group. Picklable."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """In the order in which they are read."""

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Unit, Iterator[Encoded]]]:
        """The wanted units, each with its images; they are consumed in order."""


def unit_rows(size: int) -> int:
    """Images of a unit at most, for a backbone of so many pixels a side."""
    return max(LEAST, min(MOST, PIXEL_BYTES // (3 * size * size)))


def is_unit(name: str) -> bool:
    """Whether this is the name of a unit, of whatever input."""
    return re.fullmatch(rf".+-[0-9a-f]{{{DIGEST}}}", name) is not None


# -- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilePart:
    """Image files of one unit; their paths are kept packed, as there may be many millions."""

    root: Root
    unit: Unit
    packed: bytes

    @property
    def units(self) -> tuple[Unit, ...]:
        """The one."""
        return (self.unit,)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Unit, Iterator[Encoded]]]:
        """See `Part`.

        Raises:
            UserError: the folder itself cannot be reached.
        """
        if self.unit.name in wanted:
            yield self.unit, self._images()

    def _images(self) -> Iterator[Encoded]:
        for path, fault in json.loads(zlib.decompress(self.packed)):
            data = None
            if not fault:
                try:
                    data = self.root.read(path)
                except OSError as error:
                    check_reachable(self.root)
                    fault = f"cannot be read: {one_line(error)}"
            yield Encoded(shown(path), data, fault)


class FileCutter:
    """Cuts a listing of files, as it comes, into units of at most `rows`."""

    def __init__(self, root: Root, rows: int) -> None:
        self._root, self._rows = root, rows
        self._files: list[tuple[str, str]] = []
        self._facts: list[tuple[str, int, int]] = []

    def add(self, path: str, entry: Entry, fault: str = "") -> FilePart | None:
        """Take the next file; returns a part when one is complete."""
        name = shown(path)
        self._files.append((path, fault))
        self._facts.append((name, entry.size, entry.modified))
        count = len(self._files)
        ends = count >= self._rows // 4 and _hash(name) % max(1, self._rows // 2) == 0
        return self.rest() if ends or count >= self._rows else None

    def rest(self) -> FilePart | None:
        """What has been taken since the last part."""
        if not self._files:
            return None
        unit = Unit(f"images-{combine(self._facts)[:DIGEST]}", len(self._files))
        part = FilePart(self._root, unit, zlib.compress(json.dumps(self._files).encode()))
        self._files, self._facts = [], []
        return part


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# -- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TablePart:
    """Consecutive row groups of a parquet file: one unit, or one large group that has several."""

    root: Root
    file: str
    column: str
    groups: tuple[int, ...]
    first: int
    units: tuple[Unit, ...]

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Unit, Iterator[Encoded]]]:
        """See `Part`. The groups are read once, from their beginning.

        Raises:
            UserError: the folder itself cannot be reached.
        """
        values, row = self._values(), self.first
        for unit in self.units:
            if unit.name in wanted:
                yield unit, self._images(values, row, unit.images)
            else:
                for _ in zip(range(unit.images), values, strict=False):
                    pass
            row += unit.images

    def _images(self, values: Iterator[pa.Scalar | str], row: int, count: int) -> Iterator[Encoded]:
        """What a damaged file no longer says is told of each of its images."""
        why = "cannot be read: the file ends early"
        for number in range(row, row + count):
            name = f"{shown(self.file)}#{number}"
            value = next(values, why)
            if isinstance(value, str):
                why = value
                yield Encoded(name, None, why)
            else:
                yield self._image(name, value)

    def _image(self, name: str, value: pa.Scalar) -> Encoded:
        data, path = bytes_and_path(value.as_py())
        if data is not None or not path:
            return Encoded(name, data)
        try:
            return Encoded(
                name, self.root.read(resolve(self.root, dirname(self.file), path, "input"))
            )
        except NoFile as error:
            return Encoded(name, None, str(error))
        except OSError as error:
            check_reachable(self.root)
            return Encoded(name, None, f"{path!r} cannot be read: {one_line(error)}")

    def _values(self) -> Iterator[pa.Scalar | str]:
        """The image column; ends with a reason where it cannot be read on."""
        try:
            with pq.ParquetFile(self.root.filesystem.open_input_file(self.root.at(self.file))) as f:
                for batch in f.iter_batches(BATCH, list(self.groups), columns=[self.column]):
                    yield from batch.column(0)
        except (OSError, pa.ArrowException) as error:
            check_reachable(self.root)
            yield f"cannot be read: {one_line(error)}"


def table_parts(root: Root, path: str, entry: Entry, rows: int, column: str) -> list[TablePart]:
    """A parquet file cut into units of at most `rows`, where its row groups allow along these.

    Raises:
        UserError: it is no parquet file.
    """
    with open_table(root, path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    found, first, at = [], 0, 0
    while at < len(sizes):
        stop, count = at + 1, sizes[at]
        while stop < len(sizes) and count + sizes[stop] <= rows:
            count += sizes[stop]
            stop += 1
        units = _ranges(path, entry, first, count, rows, column)
        if units:
            found.append(TablePart(root, path, column, tuple(range(at, stop)), first, units))
        first, at = first + count, stop
    return found


def _ranges(
    path: str, entry: Entry, first: int, count: int, rows: int, column: str
) -> tuple[Unit, ...]:
    """Rows [first, first + count) as units of nearly the same size."""
    pieces = -(-count // rows)
    stem = re.sub(r"[^\w.-]", "_", basename(shown(path)).removesuffix(".parquet"), flags=re.ASCII)
    units = []
    for piece in range(pieces):
        low, high = count * piece // pieces, count * (piece + 1) // pieces
        facts = [shown(path), entry.size, entry.modified, column, first + low, high - low]
        name = f"{stem[:STEM].lstrip('._')}-{first + low:09d}-{combine(*facts)[:DIGEST]}"
        units.append(Unit(name, high - low))
    return tuple(units)


def open_table(root: Root, path: str) -> pq.ParquetFile:
    """A parquet file's footer. Raises: UserError naming the file."""
    try:
        return pq.ParquetFile(root.filesystem.open_input_file(root.at(path)))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{root.shown(path)}: not a readable parquet: {one_line(error)}; fetch it again or"
            " move it away"
        ) from None


def check_reachable(root: Root) -> None:
    """Is it the file, or is the whole folder away? Raises: UserError for the latter."""
    try:
        there = root.is_folder("")
    except OSError as error:
        raise UserError(f"input: {root.shown()} cannot be reached: {one_line(error)}") from None
    if not there:
        raise UserError(
            f"input: {root.shown()} is not there for a worker; it must be a folder that every node"
            " sees"
        )
