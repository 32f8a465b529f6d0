"""The table of what could not be used: by row, by file, and why."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from archipelago.pipeline.streams.domain import Domain, Named, Split
from archipelago.pipeline.streams.files import shown

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("split", pa.string()),
        ("row", pa.int64()),  # of the split; null for a file that never became one
        ("file", pa.string()),  # or path, as the source calls it; null where it has no name
        ("reason", pa.string()),
    ]
)


def quarantine_rows(
    domain: Domain, split: Split, bad: Collection[tuple[int, str]]
) -> list[dict[str, Any]]:
    """The lines of one split, by row; `bad` holds (row, reason)."""
    rows = {row for row, _ in bad}
    files: dict[int, str] = {}
    for chunk in split.chunks if rows else ():
        if isinstance(chunk, Named):
            files |= chunk.files(rows)
    return [
        {
            "task": domain.name,
            "split": split.name,
            "row": row,
            "file": files.get(row),
            "reason": shown(reason),
        }
        for row, reason in sorted(bad)
    ]


def left_out_rows(domain: Domain) -> list[dict[str, Any]]:
    """The lines of files that are not read at all."""
    return [
        {"task": domain.name, "split": split, "row": None, "file": file, "reason": reason}
        for split, file, reason in domain.left_out
    ]


def write_quarantine(rows: list[dict[str, Any]], run: str, name: str) -> None:
    """Write the table whole or not at all, under a run folder that may be a URI."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    if "://" in run:
        filesystem, path = fs.FileSystem.from_uri(run)
        filesystem.create_dir(path, recursive=True)
        pq.write_table(table, f"{path}/{name}", filesystem=filesystem)
        return
    folder = Path(run).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f".{name}")
    (folder / f".{name}").replace(folder / name)
