"""Reader `folder`: one folder a domain, one folder a class.

    <root>/<domain>/train/<class>/*.jpg    and test/<class>/*.jpg, or without such splits
    <root>/<domain>/<class>/*.jpg          and options.test_fraction of each class for the test

A `domain.json` beside them may add `templates`, `source`, `licence` and `classes`: either a map
from folder names to class names, or the folder names in the wanted order. Without one, class names
are the folder names with blanks for underscores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.settings import StreamSettings
from pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from pipeline.streams.files import Root, combine
from pipeline.streams.folds import stratified_fold
from pipeline.streams.registry import read_options, register

FACTS = "domain.json"
CHUNK_ROWS = 256  # files of one task
OPTIONS = {
    "templates": ["a photo of a {}."],  # where domain.json states none
    "test_fraction": 0.2,  # of each class, where there are no train/ and test/ folders
    "split_seed": 0,  # of that rule; not the run's seed, so that runs share one test split
}


@dataclass(frozen=True)
class FolderChunk:
    """Files as (row, path below the root, label)."""

    root: Root
    files: tuple[tuple[int, str, int], ...]

    def rows(self) -> Iterator[RawRow]:
        """Read one file at a time."""
        for row, path, label in self.files:
            yield RawRow(row, self.root.read(path), label)


@register("folder")
class FolderReader:
    """Domains as class folders of image files."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        if not 0.0 < self.options["test_fraction"] < 1.0:
            raise UserError("stream.options.test_fraction: must lie between 0 and 1")
        self.root = Root.open(settings.root)

    def names(self) -> list[str]:
        """All folders of the root."""
        return self.root.folders()

    def domain(self, name: str) -> Domain:
        """List the files and hash their content."""
        folder = self.root.child(name)
        facts = folder.read_json(FACTS) if folder.exists(FACTS) else {}
        inside = folder.folders()
        ready = set(SPLITS) <= set(inside)
        folders = folder.child("train").folders() if ready else inside
        if not folders:
            raise UserError(f"{folder.path}: holds no class folders")
        order, classes = _classes(folder, facts.get("classes"), folders)
        if ready:
            files = {split: _files(folder, f"{split}/", order) for split in SPLITS}
            extra = sorted(set(folder.child("test").folders()) - set(order))
            if extra:
                raise UserError(f"{folder.path}/test/{extra[0]}: no such class in train/")
        else:
            files = self._split(name, _files(folder, "", order))
        splits = {split: _make_split(folder, split, files[split], classes) for split in SPLITS}
        templates = facts.get("templates", self.options["templates"])
        if not isinstance(templates, list) or not all(isinstance(t, str) for t in templates):
            raise UserError(f"{folder.path}: templates must be a list of strings")
        source, licence = (str(facts.get(key) or "not stated") for key in ("source", "licence"))
        return Domain(name, classes, tuple(templates), splits, source, licence)

    def _split(self, name: str, files: list[tuple[str, int]]) -> dict[str, list[tuple[str, int]]]:
        if not files:
            raise UserError(f"{self.root.path}/{name}: its class folders hold no files")
        labels = np.array([label for _, label in files])
        fraction, seed = self.options["test_fraction"], self.options["split_seed"]
        parts = stratified_fold(labels, fraction, seed, name)
        return {split: [files[i] for i in part] for split, part in zip(SPLITS, parts, strict=True)}


def _classes(folder: Root, stated: Any, folders: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """(folder names in class order, class names)."""
    if stated is None:
        return folders, tuple(name.replace("_", " ") for name in folders)
    if isinstance(stated, dict):
        order, names = list(stated), [str(name) for name in stated.values()]
    elif isinstance(stated, list):
        order, names = [str(name) for name in stated], [str(n).replace("_", " ") for n in stated]
    else:
        raise UserError(f"{folder.path}/{FACTS}: classes must be a list or a map of folder names")
    wrong = sorted(set(order) ^ set(folders))
    if wrong:
        raise UserError(
            f"{folder.path}/{FACTS}: classes and class folders differ in {wrong[0]!r}; "
            "state every class folder once"
        )
    return order, tuple(names)


def _files(folder: Root, prefix: str, order: list[str]) -> list[tuple[str, int]]:
    return [
        (f"{prefix}{name}/{file}", label)
        for label, name in enumerate(order)
        for file in folder.child(f"{prefix}{name}").files()
    ]


def _make_split(
    folder: Root, name: str, files: list[tuple[str, int]], classes: tuple[str, ...]
) -> Split:
    hashes = folder.sha256([path for path, _ in files])
    rows = [(row, path, label) for row, (path, label) in enumerate(files)]
    chunks = tuple(
        FolderChunk(folder, tuple(rows[start : start + CHUNK_ROWS]))
        for start in range(0, len(rows), CHUNK_ROWS)
    )
    digest = combine(name, hashes, [label for _, label in files], classes)
    return Split(name, chunks, len(files), digest)
