"""Reader `hf`: image data sets of the Hugging Face hub by name, through the `datasets` package.

`stream.options.sets` maps a domain's name to where it is, for instance

    pets: {path: timm/oxford-iiit-pet, image: image, label: label, train: train, test: test}

`config` chooses a configuration, `classes` and `templates` replace what the set states. Downloads
are kept in `stream.root` (null: the package's own cache), which every node must see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from archipelago.pipeline.streams.files import combine, one_line, shown
from archipelago.pipeline.streams.groups import grouping, of_column
from archipelago.pipeline.streams.registry import read_options, register

CHUNK_ROWS = 256
OPTIONS: dict[str, Any] = {
    "sets": {},
    "templates": ["a photo of a {}."],
    "group": None,  # column whose equal values belong together
    "group_pattern": None,  # searched for in the paths that rows state
}
DEFAULTS: dict[str, Any] = {
    "path": None,
    "config": None,
    "image": "image",
    "label": "label",
    "train": "train",
    "test": "test",
    "classes": None,
    "templates": None,
}
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {"path": "uoft-cs/cifar10", "image": "img"},
    "cifar100": {"path": "uoft-cs/cifar100", "image": "img", "label": "fine_label"},
    "food101": {"path": "ethz/food101", "test": "validation"},
    "mnist": {"path": "ylecun/mnist"},
}


@dataclass(frozen=True, eq=False)
class HubChunk:
    """Rows [start, stop) of a data set whose files are mapped, not shipped."""

    data: Any
    start: int
    stop: int
    columns: tuple[str, str]
    names: tuple[str, ...] | None

    def rows(self) -> Iterator[RawRow]:
        """Encoded images as they are stored, or as the file that they point to."""
        image, label = self.columns
        for row in range(self.start, self.stop):
            item = self.data[row]
            stored, value = item[image], item[label]
            if self.names is not None:
                value = self.names.index(value) if value in self.names else None
            yield RawRow(row, _bytes(stored), value)

    def files(self, rows: Collection[int]) -> dict[int, str]:
        """The paths that rows state."""
        found = {}
        for row in set(rows) & set(range(self.start, self.stop)):
            stored = self.data[row][self.columns[0]]
            if isinstance(stored, dict) and stored.get("path"):
                found[row] = shown(str(stored["path"]))
        return found


@register("hf")
class HubReader:
    """Domains of the Hugging Face hub."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        options = read_options(settings.options, OPTIONS)
        self.sets = {**PRESETS, **options["sets"]}
        self.templates = options["templates"]
        self.grouping = grouping(options)
        self.root = settings.root

    def names(self) -> list[str]:
        """The presets and the domains of `options.sets`."""
        return sorted(self.sets)

    def domain(self, name: str) -> Domain:
        """Fetch the set if need be and describe it."""
        entry = self._entry(name)
        data = {split: self._load(name, entry, split) for split in SPLITS}
        columns = (entry["image"], entry["label"])
        for column in columns:
            if column not in data["train"].column_names:
                raise UserError(
                    f"stream.options.sets.{name}: {entry['path']} has no column {column!r}; "
                    f"it has {', '.join(data['train'].column_names)}"
                )
        feature = data["train"].features[entry["label"]]
        stated = entry["classes"] or getattr(feature, "names", None)
        if not stated:
            raise UserError(
                f"stream.options.sets.{name}.classes: {entry['path']} states no class names; "
                "list them in label order"
            )
        named = getattr(feature, "dtype", "") in ("string", "large_string")
        key = tuple(str(c) for c in stated) if named else None
        classes = tuple(str(c).replace("_", " ") for c in stated)
        splits = {split: _split(split, data[split], columns, classes, key) for split in SPLITS}
        groups = self._groups(name, data["train"].data, entry["image"])
        splits["train"] = replace(splits["train"], groups=groups)
        info = data["train"].info
        source, licence = f"Hugging Face {entry['path']}", info.license or "not stated"
        templates = tuple(entry["templates"] or self.templates)
        return Domain(name, classes, templates, splits, source, str(licence))

    def _groups(self, name: str, table: Any, image: str) -> tuple[int, ...] | None:
        """Which rows belong together; None where nothing says so."""
        column = self.grouping.column
        if self.grouping.pattern is not None:
            stored = table.column(image)
            if not pa.types.is_struct(stored.type) or stored.type.get_field_index("path") < 0:
                return None
            return self.grouping.of_names(pc.struct_field(stored, "path").to_pylist())
        if column is None or column not in table.column_names:
            return None
        return of_column(name, column, [table.column(column)])

    def _entry(self, name: str) -> dict[str, Any]:
        entry = self.sets[name]
        key = f"stream.options.sets.{name}"
        if not isinstance(entry, dict) or not entry.get("path"):
            raise UserError(f"{key}.path: missing; name a data set of the hub, such as owner/name")
        for option in entry:
            if option not in DEFAULTS:
                raise UserError(f"{key}.{option}: unknown; known are {', '.join(DEFAULTS)}")
        return {**DEFAULTS, **entry}

    def _load(self, name: str, entry: dict[str, Any], split: str) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError(
                "stream.reader: hf needs the package `datasets`, the extra `hub` of "
                "archipelago: pip install '.[hub]' in its folder"
            ) from None
        try:
            data = datasets.load_dataset(
                entry["path"], entry["config"], split=entry[split], cache_dir=self.root
            )
            return data.cast_column(entry["image"], datasets.Image(decode=False))
        except Exception as error:  # the hub's client raises errors of many libraries
            raise UserError(
                f"stream.options.sets.{name}: cannot load {entry['path']}, split "
                f"{entry[split]!r}: {one_line(error)}"
            ) from None


def _split(
    name: str,
    data: Any,
    columns: tuple[str, str],
    classes: tuple[str, ...],
    key: tuple[str, ...] | None,
) -> Split:
    chunks = tuple(
        HubChunk(data, start, min(start + CHUNK_ROWS, len(data)), columns, key)
        for start in range(0, len(data), CHUNK_ROWS)
    )
    content = hashlib.sha256()
    for column in columns:
        for part in data.data.column(column).chunks:
            for buffer in part.buffers():
                content.update(memoryview(buffer) if buffer is not None else b"-")
    return Split(name, chunks, len(data), combine(name, content.hexdigest(), columns, classes))


def _bytes(stored: Any) -> bytes | None:
    if not isinstance(stored, dict):
        return None
    data, path = stored.get("bytes"), stored.get("path")
    if data is None and path and Path(path).is_file():
        data = Path(path).read_bytes()
    return data
