"""Which images an input holds: image files below a folder, rows of parquet files, or both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.prediction.units import (
    FileCutter,
    Part,
    TablePart,
    open_table,
    table_parts,
)
from archipelago.pipeline.streams.columns import check_image, is_bytes_type
from archipelago.pipeline.streams.files import Entry, Root, shown
from archipelago.pipeline.streams.walk import below, some, too_large

TABLE = ".parquet"
# What is meant to be an image, whether it can be decoded here or not: it gets a row.
IMAGES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff",
        ".webp", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi",
        ".heic", ".heif", ".jxl", ".ico", ".tga", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw",
    }
)  # fmt: skip
COLUMNS = ("image", "img")  # of tables that hold several that could be one
AT_ONCE = 8  # footers of tables


@dataclass
class Listing:
    """Everything below an input that is an image, cut into parts.

    Attributes:
        parts: what there is to read, in a fixed order.
        ignored: files that are neither images nor tables, the first few of them.
        ignored_count: how many there are.
    """

    parts: list[Part] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    ignored_count: int = 0

    @property
    def names(self) -> dict[str, int]:
        """Images of each unit."""
        return {unit.name: unit.images for part in self.parts for unit in part.units}

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(unit.images for part in self.parts for unit in part.units)


def list_images(uri: str, rows: int) -> Listing:
    """List an input.

    Args:
        uri: a folder, or one image or parquet file; a path or a URI.
        rows: images of a unit at most.

    Raises:
        UserError: there is nothing, or a table that cannot be used.
    """
    root, only = open_input(uri)
    found, tables = Listing(), list[tuple[str, Entry]]()
    cutter = FileCutter(root, rows)
    for path, entry in _files(root, only):
        suffix = _suffix(path)
        if suffix == TABLE and not entry.fault:
            tables.append((path, entry))
        elif suffix in IMAGES or suffix == TABLE:
            part = cutter.add(path, entry, entry.fault or too_large(entry))
            found.parts += [part] if part else []
        else:
            found.ignored_count += 1
            found.ignored += [path] if found.ignored_count <= AT_ONCE else []
    last = cutter.rest()
    found.parts += [last] if last else []

    def cut(table: tuple[str, Entry]) -> list[TablePart]:
        path, entry = table
        return table_parts(root, path, entry, rows, image_column(root, path))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for parts in pool.map(cut, tables):
            found.parts += parts
    if not found.count:
        other = f"; it holds {some(found.ignored)}" if found.ignored else ""
        raise UserError(f"input={shown(uri)}: holds no images and no parquet files{other}")
    return found


def open_input(uri: str) -> tuple[Root, str | None]:
    """The folder of an input, and the one file in it that is meant, if it is a file.

    Raises:
        UserError: there is nothing.
    """
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    head, _, name = base.rstrip("/").rpartition("/")
    if "://" in uri:
        name = unquote(name)
    if _suffix(name) in IMAGES | {TABLE} and not head.endswith(":/"):
        root = Root.open(f"{head or '/'}{mark}{query}", "input")
        if not root.exists(name):
            raise UserError(f"input: {root.shown(name)} is not there")
        if not root.is_folder(name):
            return root, name
    return Root.open(uri, "input"), None


def image_column(root: Root, path: str) -> str:
    """The column of a table that holds its images.

    Raises:
        UserError: there is none, or several and none is called `image`.
    """
    with open_table(root, path) as file:
        schema = file.schema_arrow
    usable = [item.name for item in schema if _holds_images(item.type)]
    named = [name for name in COLUMNS if name in schema.names]
    where = root.shown(path)
    if named:
        check_image(where, schema.field(named[0]).type)
        return named[0]
    if len(usable) != 1:
        which = f"several: {', '.join(usable)}" if usable else f"it has {', '.join(schema.names)}"
        raise UserError(
            f"{where}: no column 'image' ({which}); call the one with the images so, as"
            " {bytes, path} or binary"
        )
    return usable[0]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and is_bytes_type(kind.field(at).type)
    return is_bytes_type(kind)


def _files(root: Root, only: str | None) -> Iterator[tuple[str, Entry]]:
    """What may be an image; hidden files and folders, and what systems leave behind, are not."""
    if only is not None:
        folder, _, name = only.rpartition("/")
        yield from ((only, entry) for entry in root.entries(folder) if entry.name == name)
        return
    for path, entry in below(root, ""):
        hidden = any(part.startswith(".") for part in path.split("/"))
        if not hidden and not entry.junk:
            yield path, entry


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""
