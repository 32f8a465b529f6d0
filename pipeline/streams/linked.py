"""Images that a table names by path instead of holding them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archipelago.pipeline.streams.columns import is_bytes_type, is_text_type
from archipelago.pipeline.streams.files import Root

BATCH = 256


class NoFile(Exception):
    """A path that leads to no file that may be read; the message is the reason."""


def resolve(root: Root, folder: str, path: str, key: str = "stream.root") -> str:
    """Name of a file below the stream's root.

    Args:
        root: the stream's root; nothing outside of it is read.
        folder: below the root, the folder that relative paths start from.
        path: as the table states it.
        key: the setting that names the root, for messages.

    Raises:
        NoFile: with the reason.
    """
    if "://" in path:
        raise NoFile(f"no bytes, and {path!r} is an address: embed the file")
    inside = _below(root, path) if posixpath.isabs(path) else posixpath.join(folder, path)
    inside = posixpath.normpath(inside) if inside else inside
    if inside is None or inside == ".." or inside.startswith("../"):
        raise NoFile(f"no bytes, and {path!r} lies outside of {key}: embed the file")
    if "\0" in inside or not root.exists(inside) or root.is_folder(inside):
        raise NoFile(f"no bytes, and the file {path!r} is not there: embed it, or fetch it")
    if root.local and not Path(root.at(inside)).is_file():
        raise NoFile(f"no bytes, and {path!r} is no regular file")
    return inside


def paths_without_bytes(file: pq.ParquetFile, column: str) -> Iterator[str | None]:
    """The path of every row that holds no bytes, None where it has none either; cheap where no
    such row is."""
    kind = file.schema_arrow.field(column).type
    if is_bytes_type(kind) or not _lacks_bytes(file, column, kind):
        return
    for batch in file.iter_batches(BATCH, columns=[column]):
        for value in batch.column(column):
            data, path = bytes_and_path(value.as_py())
            if data is None:
                yield path


def stated_paths(file: pq.ParquetFile, column: str) -> Iterator[str | None]:
    """The path of every row, None where it has none; bytes are not read."""
    kind = file.schema_arrow.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        column = f"{column}.path"
    elif not is_text_type(kind):
        yield from [None] * file.metadata.num_rows
        return
    for batch in file.iter_batches(BATCH, columns=[column]):
        for value in batch.column(0):
            yield bytes_and_path(value.as_py())[1]


def bytes_and_path(value: Any) -> tuple[bytes | None, str | None]:
    """What a value of an image column holds: {bytes, path}, bytes, or a path."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (None, value) if isinstance(value, str) else (value, None)


def _lacks_bytes(file: pq.ParquetFile, column: str, kind: pa.DataType) -> bool:
    """Whether some row may hold no bytes, as the file's own statistics say."""
    if is_text_type(kind) or kind.get_field_index("bytes") < 0:
        return True
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for i in range(group.num_columns):
            leaf = group.column(i)
            if leaf.path_in_schema == f"{column}.bytes":
                facts = leaf.statistics
                if facts is None or not facts.has_null_count or facts.null_count:
                    return True
    return False


def _below(root: Root, path: str) -> str | None:
    """An absolute path as one below the root, whatever links lead there; None where it is not."""
    forms = [(path, root.path)]
    if root.local:
        forms.append((os.path.realpath(path), os.path.realpath(root.path)))
    for candidate, base in forms:
        base = base.rstrip("/") + "/"
        if posixpath.normpath(candidate).startswith(base):
            return posixpath.normpath(candidate)[len(base) :]
    return None
