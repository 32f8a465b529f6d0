"""Images as people have them, for tests of batch prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def fill_photos(folder: Path, images: np.ndarray) -> Path:
    """Images in two folders, and what else lies around."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".thumbs").mkdir()
    for number, pixels in enumerate(images):
        where = folder if number % 2 else folder / "deep" / "er"
        Image.fromarray(pixels).save(where / f"{number:03d}.png")
    for name in (".hidden.png", ".thumbs/a.png", "Thumbs.db", "notes.txt", "README"):
        (folder / name).write_bytes(b"x")
    return folder


def table_of(images: list[Any], file: Path, column: str = "image", rows: int = 100) -> Path:
    """A parquet file of images, in row groups of so many."""
    pq.write_table(pa.table({column: images, "id": range(len(images))}), file, row_group_size=rows)
    return file


def answers(output: Path | str, filesystem: Any = None) -> dict[str, dict[str, Any]]:
    """The rows of an output by path, read as anybody would: state and lock do not disturb."""
    rows = pq.read_table(output, filesystem=filesystem).to_pylist()
    found = {row["path"]: row for row in rows}
    assert len(found) == len(rows), "an image has two rows"
    return found


def same(row: dict[str, Any], answer: Any) -> None:
    """Whether a row says what the learned model answers."""
    assert (row["domain"], row["unseen"], row["error"]) == (answer.task, answer.unseen, None)
    said = [(item["label"], item["probability"]) for item in row["top_k"]]
    assert [name for name, _ in said] == [name for name, _ in answer.classes]
    for (_, mine), (_, its) in zip(said, answer.classes, strict=True):
        assert abs(mine - its) < 1e-5, "but for the bits of another batch"
    first = said[0] if said else (None, None)
    assert (row["label"], row["probability"]) == first
