"""Reader `parquet`: one folder a domain, in Hugging Face's image schema.

    <root>/<domain>/domain.json            classes, templates [, splits, source, licence]
    <root>/<domain>/train.parquet          or train-00000-of-00002.parquet ..., also under data/
    <root>/<domain>/test.parquet

Columns `image {bytes, path}` (or plain binary) and `label` (an index into `classes`, or a class
name). `stream.root` is a folder or a URI such as s3://bucket/streams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.settings import StreamSettings
from pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from pipeline.streams.files import Root, combine, one_line
from pipeline.streams.registry import read_options, register

FACTS = "domain.json"
CHUNK_ROWS = 256  # rows of one task: small enough to spread, large enough to be worth a task
PASSES = 8  # a row group is read at most this often, however large it is
OPTIONS = {"image": "image", "label": "label", "train": "train", "test": "test"}


@dataclass(frozen=True)
class ParquetChunk:
    """Rows [start, stop) of one row group; `first` is the split-wide index of row `start`."""

    root: Root
    file: str
    group: int
    start: int
    stop: int
    first: int
    columns: tuple[str, str]
    names: tuple[str, ...] | None

    def rows(self) -> Iterator[RawRow]:
        """Stream the range, skipping what lies before it."""
        image, label = self.columns
        index_of = {name: i for i, name in enumerate(self.names or ())}
        with _open(self.root, self.file) as file:
            seen = 0
            for batch in file.iter_batches(64, [self.group], columns=[image, label]):
                low, high = max(self.start - seen, 0), min(self.stop - seen, len(batch))
                seen += len(batch)
                if low < high:
                    part = batch.slice(low, high - low)
                    images, labels = part.column(image), part.column(label).to_pylist()
                    offset = self.first + (seen - len(batch) + low - self.start)
                    for i, value in enumerate(labels):
                        value = index_of.get(value) if self.names else value
                        yield RawRow(offset + i, _bytes(images[i].as_py()), value)
                if seen >= self.stop:
                    return


@register("parquet")
class ParquetReader:
    """Domains in parquet files, each beside its `domain.json`."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        self.root = Root.open(settings.root)

    def names(self) -> list[str]:
        """Folders that hold a `domain.json` or parquet files."""
        return [
            name
            for name in self.root.folders()
            if any(file == FACTS or file.endswith(".parquet") for file in self._files(name))
        ]

    def domain(self, name: str) -> Domain:
        """Read the facts, the label columns and the files' hashes."""
        folder = self.root.child(name)
        if not folder.exists(FACTS):
            raise UserError(f"{folder.path}/{FACTS}: missing; it states classes and templates")
        facts = folder.read_json(FACTS)
        classes, templates = (string_list(folder, facts, key) for key in ("classes", "templates"))
        splits = {split: self._split(name, split, classes) for split in SPLITS}
        declared = facts.get("splits") or {}
        if not isinstance(declared, dict):
            raise UserError(f"{folder.path}/{FACTS}: splits must map split names to row counts")
        for split, found in splits.items():
            if split in declared and declared[split] != found.count:
                raise UserError(
                    f"{folder.path}/{FACTS}: splits.{split} states {declared[split]} rows but the "
                    f"files hold {found.count}; correct it or fetch the files again"
                )
        source, licence = (str(facts.get(key) or "not stated") for key in ("source", "licence"))
        return Domain(name, classes, templates, splits, source, licence)

    def _files(self, name: str) -> list[str]:
        folder = self.root.child(name)
        return folder.files() + [f"data/{file}" for file in folder.child("data").files()]

    def _split(self, name: str, split: str, classes: tuple[str, ...]) -> Split:
        folder = self.root.child(name)
        stem = re.escape(str(self.options[split]))
        pattern = re.compile(rf"(data/)?{stem}(-.*)?\.parquet")
        files = [file for file in self._files(name) if pattern.fullmatch(file)]
        if not files:
            raise UserError(
                f"{folder.path}: no {self.options[split]}.parquet or "
                f"{self.options[split]}-*.parquet; every domain needs a train and a test split"
            )
        chunks: list[ParquetChunk] = []
        count = 0
        for path in files:
            with _open(folder, path) as file:
                named = self._check_columns(folder, path, file, classes)
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    step = max(CHUNK_ROWS, math.ceil(rows / PASSES))
                    for start in range(0, rows, step):
                        chunks.append(
                            ParquetChunk(
                                *(folder, path, group, start, min(start + step, rows)),
                                *(count + start, self._columns, classes if named else None),
                            )
                        )
                    count += rows
        digest = combine(split, folder.sha256(files), self._columns, classes)
        return Split(split, tuple(chunks), count, digest)

    @property
    def _columns(self) -> tuple[str, str]:
        return str(self.options["image"]), str(self.options["label"])

    def _check_columns(
        self, folder: Root, path: str, file: pq.ParquetFile, classes: tuple[str, ...]
    ) -> bool:
        """Refuse labels that no class answers to; returns whether labels are class names."""
        where = f"{folder.path}/{path}"
        for column in self._columns:
            if column not in file.schema_arrow.names:
                raise UserError(
                    f"{where}: no column {column!r}; it has {', '.join(file.schema_arrow.names)}"
                )
        kind = file.schema_arrow.field(self._columns[0]).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(f"{where}: images are {kind}; use {{bytes, path}} or binary")
        try:
            labels = file.read([self._columns[1]]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{where}: cannot read the labels: {one_line(error)}") from None
        if pa.types.is_dictionary(labels.type):
            labels = labels.cast(labels.type.value_type)
        known = f"{folder.path}/{FACTS} lists {len(classes)} classes"
        if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
            unknown = sorted(set(pc.unique(labels.drop_null()).to_pylist()) - set(classes))
            if unknown:
                raise UserError(f"{where}: label {unknown[0]!r} is no class; {known}")
            return True
        if not pa.types.is_integer(labels.type):
            raise UserError(f"{where}: labels are {labels.type}; use class numbers or class names")
        span = pc.min_max(labels).as_py()
        for value in (span["min"], span["max"]):
            if value is not None and not 0 <= value < len(classes):
                raise UserError(f"{where}: label {value} is outside 0..{len(classes) - 1}; {known}")
        return False


def string_list(folder: Root, facts: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings from `domain.json`; raises UserError naming file and key."""
    where = f"{folder.path}/{FACTS}: {key}"
    if key not in facts:
        raise UserError(f"{where} is missing; add it as a list of strings")
    value = facts[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where} must be a list of strings")
    return tuple(value)


def _open(root: Root, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(root.filesystem.open_input_file(f"{root.path}/{file}"))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{root.path}/{file}: not a readable parquet: {one_line(error)}") from None


def _bytes(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value
