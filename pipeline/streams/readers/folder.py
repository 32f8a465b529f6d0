"""Reader `folder`: one folder a domain, one folder a class.

    <root>/<domain>/train/<class>/*.jpg    and test/<class>/*.jpg, or without such splits
    <root>/<domain>/<class>/*.jpg          and options.test_fraction of each class for the test

A class is all that lies below its folder. A `domain.json` beside them may add `templates`,
`source`, `licence` and `classes`: either a map from folder names to class names, or the folder
names in the wanted order. Without one, class names are the folder names with blanks for
underscores. What systems leave behind (`pipeline.streams.junk`) is neither class nor image.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.domain import SPLITS, Domain, LeftOut, RawRow, Split
from archipelago.pipeline.streams.files import Root, combine, one_line, shown
from archipelago.pipeline.streams.folds import stratified_fold
from archipelago.pipeline.streams.groups import BY_PATTERN, grouping, shared
from archipelago.pipeline.streams.layout import FACTS, Layout, read_layout
from archipelago.pipeline.streams.names import composed
from archipelago.pipeline.streams.registry import read_options, register
from archipelago.pipeline.streams.walk import some

log = logging.getLogger(__name__)

RUN = "run.json"  # a folder that holds it was written by a run, not by a person
CHUNK_ROWS = 256  # files of one task
OPTIONS = {
    "templates": ["a photo of a {}."],  # where domain.json states none
    "train": "train",  # folders of ready splits
    "test": "test",
    "test_fraction": 0.2,  # of each class, where there are no such folders
    "split_seed": 0,  # of that rule; not the run's seed, so that runs share one test split
    "group_pattern": None,  # searched for in paths below the domain's folder
}


@dataclass(frozen=True)
class File:
    """A file that may be an image: path below its domain, label, sha256 of its content."""

    path: str
    label: int
    sha256: str


@dataclass(frozen=True)
class FolderChunk:
    """Files as (row, path below the root, label)."""

    root: Root
    rows_of: tuple[tuple[int, str, int], ...]

    def rows(self) -> Iterator[RawRow]:
        """Read one file at a time."""
        for row, path, label in self.rows_of:
            yield RawRow(row, self.root.read(path), label)

    def files(self, rows: Collection[int]) -> dict[int, str]:
        """Paths below the domain's folder."""
        return {row: shown(path) for row, path, _ in self.rows_of if row in rows}


@register("folder")
class FolderReader:
    """Domains as class folders of image files."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        if not 0.0 < self.options["test_fraction"] < 1.0:
            raise UserError("stream.options.test_fraction: must lie between 0 and 1")
        if self.options["train"] == self.options["test"]:
            raise UserError("stream.options.test: is the same folder as stream.options.train")
        self.grouping = grouping(self.options)
        self.root = Root.open(settings.root)

    def names(self) -> list[str]:
        """All folders of the root but hidden ones, runs and known junk."""
        folders = [entry.name for entry in self.root.entries() if entry.folder and not entry.junk]
        folders = [name for name in folders if not self.root.exists(f"{name}/{RUN}")]
        hidden = [name for name in folders if name.startswith((".", "_"))]
        if hidden:
            log.warning(
                "stream.root: %s: no domains, as their names do not start with a letter or digit",
                some(hidden),
            )
        return [shown(name) for name in folders if name not in hidden]

    def domain(self, name: str) -> Domain:
        """List the files and hash their content."""
        folder = self.root.child(name)
        facts = folder.read_json(FACTS) if folder.exists(FACTS) else {}
        layout = read_layout(folder, name, self.options["train"], self.options["test"])
        order, classes = _classes(folder, facts.get("classes"), layout)
        left_out = [LeftOut(*fault) for fault in layout.faults]
        found: dict[str, list[File]] = {}
        for split in layout.splits:
            found[split], lost = _hashed(folder, layout, split, order)
            left_out += lost
        if not layout.ready:
            found = self._split(folder, name, found[""], left_out)
        _tell(name, layout, left_out)
        splits = {split: _make_split(folder, split, found[split], classes) for split in SPLITS}
        splits["train"] = replace(splits["train"], groups=self._groups(found["train"]))
        templates = facts.get("templates", self.options["templates"])
        if not isinstance(templates, list) or not all(isinstance(t, str) for t in templates):
            raise UserError(f"{folder.shown()}: templates must be a list of strings")
        source, licence = (str(facts.get(key) or "not stated") for key in ("source", "licence"))
        return Domain(
            *(name, classes, tuple(templates), splits, source, licence), left_out=tuple(left_out)
        )

    def _split(
        self, folder: Root, name: str, files: list[File], left_out: list[LeftOut]
    ) -> dict[str, list[File]]:
        where = folder.shown()
        if not files:
            why = f": {left_out[0].file}: {left_out[0].reason}" if left_out else ""
            raise UserError(f"{where}: its class folders hold no files that can be read{why}")
        labels = np.array([file.label for file in files])
        fraction, seed = self.options["test_fraction"], self.options["split_seed"]
        groups = shared(self._groups(files))
        parts = stratified_fold(labels, fraction, seed, name, groups)
        if not len(parts[1]):
            one = "image" if groups is None else f"group of images (stream.options.{BY_PATTERN})"
            raise UserError(
                f"{where}: one {one} a class leaves nothing for a test; add images, or give "
                "train/ and test/ folders"
            )
        return {split: [files[i] for i in part] for split, part in zip(SPLITS, parts, strict=True)}

    def _groups(self, files: list[File]) -> tuple[int, ...] | None:
        """Which files belong together, by their paths; None where nothing says so."""
        if self.grouping.pattern is None:
            return None
        return self.grouping.of_names(shown(file.path) for file in files)


def _classes(folder: Root, stated: Any, layout: Layout) -> tuple[list[str], tuple[str, ...]]:
    """(classes as the layout calls them, in their order; class names)."""
    there = layout.classes
    if stated is None:
        for name, path in layout.unreadable.items():
            key = name.replace("\\", "\\\\")
            raise UserError(
                f"{folder.shown(path)}: the folder's name is no UTF-8; rename it, or name the "
                f'class in {FACTS}: {{"classes": {{"{key}": "its name", ...}}}}'
            )
        return there, tuple(name.replace("_", " ").strip() for name in there)
    if isinstance(stated, dict):
        order, names = list(stated), [str(name) for name in stated.values()]
    elif isinstance(stated, list):
        order, names = [str(name) for name in stated], [str(n).replace("_", " ") for n in stated]
    else:
        raise UserError(f"{folder.shown(FACTS)}: classes must be a list or a map of folder names")
    order = [composed(name) for name in order]
    wrong = sorted(set(order) ^ set(there))
    if wrong:
        raise UserError(
            f"{folder.shown(FACTS)}: classes and class folders differ in {wrong[0]!r}; "
            "state every class folder once"
        )
    return order, tuple(composed(name) for name in names)


def _hashed(
    folder: Root, layout: Layout, split: str, order: list[str]
) -> tuple[list[File], list[LeftOut]]:
    """The files of a split with their hashes, and those that cannot be read."""
    named = [(path, i) for i, name in enumerate(order) for path in layout.files(split, name)]
    hashes = folder.try_sha256([path for path, _ in named])
    files, lost = [], []
    for (path, label), found in zip(named, hashes, strict=True):
        if isinstance(found, str):
            files.append(File(path, label, found))
        else:
            reason = f"cannot be read: {one_line(found)}"
            lost.append(LeftOut(layout.split_of(path), shown(path), reason))
    return files, lost


def _make_split(folder: Root, name: str, files: list[File], classes: tuple[str, ...]) -> Split:
    rows = [(row, file.path, file.label) for row, file in enumerate(files)]
    chunks = tuple(
        FolderChunk(folder, tuple(rows[start : start + CHUNK_ROWS]))
        for start in range(0, len(rows), CHUNK_ROWS)
    )
    hashes, labels = [file.sha256 for file in files], [file.label for file in files]
    return Split(name, chunks, len(files), combine(name, hashes, labels, classes))


def _tell(name: str, layout: Layout, left_out: list[LeftOut]) -> None:
    """Say in a line each what of the folder is not used as one might expect."""
    for line in layout.notes:
        log.warning("%s: %s", name, line)
    dangling = [item.file for item in left_out if "link" in item.reason]
    if dangling:
        log.warning(
            "%s: %d links lead nowhere (was the content fetched?) and are left out: %s",
            name,
            len(dangling),
            some(dangling),
        )
