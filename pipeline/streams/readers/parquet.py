"""Reader `parquet`: one folder a domain, in Hugging Face's image schema.

    <root>/<domain>/domain.json            classes, templates [, splits, source, licence]
    <root>/<domain>/train.parquet          or train-00000-of-00002.parquet ..., also under data/
    <root>/<domain>/test.parquet

Columns `image {bytes, path}` (or plain binary) and `label` (an index into `classes`, or a class
name). Without `domain.json` the class names are those of the files' own schema (ClassLabel), and
the templates `options.templates`. Where a row has a path and no bytes, the file is read: relative
paths start at the parquet's folder, and nothing outside of `stream.root` is opened. `stream.root`
is a folder or a URI such as s3://bucket/streams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from posixpath import dirname
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.columns import (
    check_image,
    check_labels,
    check_names,
    class_names,
    lack_of_labels,
)
from archipelago.pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from archipelago.pipeline.streams.files import Root, combine, one_line, shown
from archipelago.pipeline.streams.groups import grouping, of_column
from archipelago.pipeline.streams.linked import (
    NoFile,
    bytes_and_path,
    paths_without_bytes,
    resolve,
    stated_paths,
)
from archipelago.pipeline.streams.names import composed
from archipelago.pipeline.streams.registry import read_options, register

FACTS = "domain.json"
CHUNK_ROWS = 256  # rows of one task: small enough to spread, large enough to be worth a task
PASSES = 8  # a row group is read at most this often, however large it is
OPTIONS = {
    "image": "image",
    "label": "label",
    "train": "train",
    "test": "test",
    "templates": ["a photo of a {}."],  # where there is no domain.json
    "group": None,  # column whose equal values belong together
    "group_pattern": None,  # searched for in the paths that rows state
}


@dataclass(frozen=True)
class ParquetChunk:
    """Rows [start, stop) of one row group; `first` is the split-wide index of row `start`.

    `root` is the stream's, `file` lies below it.
    """

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
        index_of = {name: i for i, name in enumerate(self.names or ())}
        for row, image, label in self._values(list(self.columns)):
            if self.names:
                label = index_of.get(composed(label)) if label is not None else None
            data, path = bytes_and_path(image)
            fault = ""
            if data is None and path:
                try:
                    data = self.root.read(resolve(self.root, dirname(self.file), path))
                except NoFile as error:
                    fault = str(error)
            yield RawRow(row, data, label, fault=fault)

    def files(self, rows: Collection[int]) -> dict[int, str]:
        """The path that a row states, else the parquet file."""
        wanted = {row for row in rows if self.first <= row < self.first + self.stop - self.start}
        if not wanted:
            return {}
        with _open(self.root, self.file) as file:
            kind = file.schema_arrow.field(self.columns[0]).type
        has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        name = f"{self.columns[0]}.path" if has_path else self.columns[0]
        found = {}
        for row, image, _ in self._values([name]):
            if row in wanted:
                path = bytes_and_path(image)[1]
                found[row] = shown(path) if path else self.file.partition("/")[2]
        return found

    def _values(self, columns: list[str]) -> Iterator[tuple[int, Any, Any]]:
        """(row, first column, second column if asked for) of the range."""
        with _open(self.root, self.file) as file:
            seen = 0
            for batch in file.iter_batches(64, [self.group], columns=columns):
                low, high = max(self.start - seen, 0), min(self.stop - seen, len(batch))
                seen += len(batch)
                if low < high:
                    part = batch.slice(low, high - low)
                    offset = self.first + (seen - len(batch) + low - self.start)
                    names = [name.partition(".")[0] for name in columns]
                    last = part.column(part.schema.names.index(names[-1])).to_pylist()
                    images = part.column(part.schema.names.index(names[0]))
                    for i, value in enumerate(last):
                        yield offset + i, images[i].as_py(), value
                if seen >= self.stop:
                    return


@register("parquet")
class ParquetReader:
    """Domains in parquet files, each beside its `domain.json`."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        self.grouping = grouping(self.options)
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
        facts = self._facts(name, folder)
        classes, templates = (string_list(folder, facts, key) for key in ("classes", "templates"))
        classes = tuple(composed(each) for each in classes)
        splits = {split: self._split(name, split, classes) for split in SPLITS}
        declared = facts.get("splits") or {}
        if not isinstance(declared, dict):
            raise UserError(f"{folder.shown(FACTS)}: splits must map split names to row counts")
        for split, found in splits.items():
            if split in declared and declared[split] != found.count:
                raise UserError(
                    f"{folder.shown(FACTS)}: splits.{split} states {declared[split]} rows but the "
                    f"files hold {found.count}; correct it or fetch the files again"
                )
        source, licence = (str(facts.get(key) or "not stated") for key in ("source", "licence"))
        return Domain(name, classes, templates, splits, source, licence)

    def _facts(self, name: str, folder: Root) -> dict[str, Any]:
        """What `domain.json` states, its gaps filled from the schema of the training files."""
        there = folder.exists(FACTS)
        facts = folder.read_json(FACTS) if there else {}
        if "classes" not in facts:
            with _open(folder, self._split_files(name, "train")[0]) as file:
                stored = class_names(file.schema_arrow.metadata, self._columns[1])
            if stored is not None:
                facts["classes"] = stored
            elif not there:
                raise UserError(
                    f"{folder.shown(FACTS)}: missing; it states classes and templates (the files' "
                    "own schema names no classes)"
                )
        if not there:
            facts["templates"] = self.options["templates"]
        return facts

    def _files(self, name: str) -> list[str]:
        folder = self.root.child(name)
        return folder.files() + [f"data/{file}" for file in folder.child("data").files()]

    def _split_files(self, name: str, split: str) -> list[str]:
        """The files of one split, below the domain's folder."""
        wanted = str(self.options[split])
        pattern = re.compile(rf"(data/)?{re.escape(wanted)}(-.*)?\.parquet")
        files = [file for file in self._files(name) if pattern.fullmatch(file)]
        if not files:
            raise UserError(
                f"{self.root.shown(name)}: no {wanted}.parquet or {wanted}-*.parquet; every domain "
                f"needs a train and a test split{self._others(name, split)}"
            )
        return files

    def _others(self, name: str, split: str) -> str:
        """A hint at splits that are there and not in use."""
        stems = [
            re.sub(r"(-.*)?\.parquet$", "", file.removeprefix("data/"))
            for file in self._files(name)
            if file.endswith(".parquet")
        ]
        others = [stem for stem in dict.fromkeys(stems) if stem not in self._stems]
        if not others:
            return ""
        said = " and ".join(f"`{stem}`" for stem in others)
        return f"; a split {said} is there: stream.options.{split}={others[0]} takes it"

    @property
    def _stems(self) -> list[str]:
        return [str(self.options[split]) for split in SPLITS]

    def _split(self, name: str, split: str, classes: tuple[str, ...]) -> Split:
        folder = self.root.child(name)
        files = self._split_files(name, split)
        named = self._check(name, split, files, classes)
        chunks: list[ParquetChunk] = []
        count, linked = 0, []
        for path in files:
            with _open(folder, path) as file:
                linked += self._linked(name, path, file)
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    step = max(CHUNK_ROWS, math.ceil(rows / PASSES))
                    for start in range(0, rows, step):
                        chunks.append(
                            ParquetChunk(
                                self.root,
                                f"{name}/{path}",
                                group,
                                start,
                                min(start + step, rows),
                                count + start,
                                self._columns,
                                classes if named[path] else None,
                            )
                        )
                    count += rows
        parts = [split, folder.sha256(files), self._columns, classes]
        digest = combine(*parts, *([linked] if linked else []))
        groups = self._groups(folder, files) if split == "train" else None
        return Split(split, tuple(chunks), count, digest, groups=groups)

    def _groups(self, folder: Root, files: list[str]) -> tuple[int, ...] | None:
        """Which rows belong together, over the files of a split; None where nothing says so."""
        column, found, lacking = self.grouping.column, [], []
        if self.grouping.pattern is not None:
            for path in files:
                with _open(folder, path) as file:
                    found += list(stated_paths(file, self._columns[0]))
            return self.grouping.of_names(found)
        if column is None:
            return None
        for path in files:
            with _open(folder, path) as file:
                if column in file.schema_arrow.names:
                    found.append(file.read([column]).column(0))
                else:
                    lacking.append(path)
        if found and lacking:
            raise UserError(
                f"{self.grouping.key}: {folder.shown(lacking[0])} has no column {column!r}, which "
                "other files of the split have; add it"
            )
        return of_column(folder.shown(), column, found) if found else None

    def _check(
        self, name: str, split: str, files: list[str], classes: tuple[str, ...]
    ) -> dict[str, bool]:
        """Refuse columns and labels that do not fit; says of each file whether labels are names."""
        folder = self.root.child(name)
        labels = {path: self._labels(folder, path, classes, name, split) for path in files}
        lacks = [lack_of_labels(found) for found in labels.values()]
        if lacks and all(lacks):
            raise UserError(
                f"{folder.shown(files[0])}: the {split} split is unlabelled ({lacks[0]})"
                f"{self._others(name, split)}"
            )
        known = f"{folder.shown(FACTS)} lists {len(classes)} classes"
        return {
            path: check_labels(folder.shown(path), found, classes, known)
            for path, found in labels.items()
        }

    def _labels(
        self, folder: Root, path: str, classes: tuple[str, ...], name: str, split: str
    ) -> pa.ChunkedArray:
        """The label column of a file whose columns are what they should be."""
        where = folder.shown(path)
        with _open(folder, path) as file:
            schema = file.schema_arrow
            for column in self._columns:
                if column not in schema.names:
                    hint = self._others(name, split) if column == self._columns[1] else ""
                    raise UserError(
                        f"{where}: no column {column!r}; it has {', '.join(schema.names)}{hint}"
                    )
            check_image(where, schema.field(self._columns[0]).type)
            stored = class_names(schema.metadata, self._columns[1])
            if stored is not None and pa.types.is_integer(schema.field(self._columns[1]).type):
                check_names(where, FACTS, classes, stored)
            try:
                return file.read([self._columns[1]]).column(0)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{where}: cannot read the labels: {one_line(error)}") from None

    def _linked(self, name: str, path: str, file: pq.ParquetFile) -> list[str]:
        """Content of the images that the rows name and do not hold; reasons where there is none."""
        found = []
        for stated in paths_without_bytes(file, self._columns[0]):
            try:
                where = resolve(self.root, dirname(f"{name}/{path}"), stated or "")
                found.append(self.root.sha256([where])[0])
            except NoFile as error:
                found.append(str(error))
        return found

    @property
    def _columns(self) -> tuple[str, str]:
        return str(self.options["image"]), str(self.options["label"])


def string_list(folder: Root, facts: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings from `domain.json`; raises UserError naming file and key."""
    where = f"{folder.shown(FACTS)}: {key}"
    if key not in facts:
        raise UserError(f"{where} is missing; add it as a list of strings")
    value = facts[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where} must be a list of strings")
    return tuple(value)


def _open(root: Root, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(root.filesystem.open_input_file(root.at(file)))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{root.shown(file)}: not a readable parquet: {one_line(error)}") from None
