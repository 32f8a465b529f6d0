"""Reader `torchvision`: data sets of torchvision by name, downloaded once into `stream.root`.

`stream.options.sets` adds domains to the presets below, for instance

    pets: {set: OxfordIIITPet, train: {split: trainval}, test: {split: test}}

`test: null` holds out a fifth of each class; `classes` and `templates` replace the set's own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.decode import to_rgb
from archipelago.pipeline.streams.domain import Domain, RawRow, Split
from archipelago.pipeline.streams.files import combine, one_line
from archipelago.pipeline.streams.folds import stratified_fold
from archipelago.pipeline.streams.registry import read_options, register

log = logging.getLogger(__name__)

CHUNK_ROWS = 256
TEST_FRACTION = 0.2
OPTIONS: dict[str, Any] = {"sets": {}, "templates": ["a photo of a {}."]}
KEYS = ("set", "train", "test", "classes", "templates")


def _preset(name: str, train: Any, test: Any) -> dict[str, Any]:
    return {"set": name, "train": train, "test": test}


FLAG: tuple[Any, Any] = ({"train": True}, {"train": False})
SPLIT: tuple[Any, Any] = ({"split": "train"}, {"split": "test"})
TRAINVAL: tuple[Any, Any] = ({"split": "trainval"}, {"split": "test"})
WHOLE: tuple[Any, Any] = ({}, None)
PRESETS: dict[str, dict[str, Any]] = {
    "aircraft": _preset("FGVCAircraft", *TRAINVAL),
    "caltech101": _preset("Caltech101", *WHOLE),
    "cifar10": _preset("CIFAR10", *FLAG),
    "cifar100": _preset("CIFAR100", *FLAG),
    "country211": _preset("Country211", *SPLIT),
    "dtd": _preset("DTD", *SPLIT),
    "eurosat": _preset("EuroSAT", *WHOLE),
    "fashionmnist": _preset("FashionMNIST", *FLAG),
    "flowers102": _preset("Flowers102", *SPLIT),
    "food101": _preset("Food101", *SPLIT),
    "mnist": _preset("MNIST", *FLAG),
    "oxfordpets": _preset("OxfordIIITPet", *TRAINVAL),
    "stanfordcars": _preset("StanfordCars", *SPLIT),
    "stl10": _preset("STL10", *SPLIT),
    "sun397": _preset("SUN397", *WHOLE),
}


@dataclass(frozen=True)
class TorchvisionChunk:
    """Items of one data set, as (row, position); the folder must be there on every node."""

    set: str
    folder: str
    arguments: tuple[tuple[str, Any], ...]
    items: tuple[tuple[int, int], ...]

    def rows(self) -> Iterator[RawRow]:
        """Open the set once, then item by item; one that the set cannot read has no image."""
        data = _load(self.set, self.folder, dict(self.arguments), download=False)
        for row, position in self.items:
            try:
                image, label = data[position]
                yield RawRow(row, np.asarray(to_rgb(image)), int(label))
            except (OSError, ValueError, SyntaxError) as error:
                log.warning("%s, item %d: %s", self.set, position, one_line(error))
                yield RawRow(row, None, 0)


@register("torchvision")
class TorchvisionReader:
    """Domains that torchvision knows how to fetch."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        options = read_options(settings.options, OPTIONS)
        self.sets = {**PRESETS, **options["sets"]}
        self.templates = options["templates"]
        if not settings.root or "://" in settings.root:
            raise UserError("stream.root: set it to a local folder for torchvision's downloads")
        self.root = Path(settings.root).expanduser().resolve()

    def names(self) -> list[str]:
        """The presets and the domains of `options.sets`."""
        return sorted(self.sets)

    def domain(self, name: str) -> Domain:
        """Fetch the set if need be and describe it."""
        entry = self.sets[name]
        key = f"stream.options.sets.{name}"
        if not isinstance(entry, dict) or not isinstance(entry.get("set"), str):
            raise UserError(f"{key}: needs a `set`, the name of a class in torchvision.datasets")
        for option in entry:
            if option not in KEYS:
                raise UserError(f"{key}.{option}: unknown; known are {', '.join(KEYS)}")
        folder = str(self.root / name)
        train = _load(entry["set"], folder, entry.get("train") or {}, download=True)
        stated = entry.get("classes") or getattr(train, "classes", None)
        stated = stated or getattr(train, "categories", None)
        if not stated:
            raise UserError(f"{key}.classes: {entry['set']} states none; list them in label order")
        classes = tuple(str(c).replace("_", " ").strip() for c in stated)
        if entry.get("test") is None:
            labels = np.array([int(train[i][1]) for i in range(len(train))])
            parts = stratified_fold(labels, TEST_FRACTION, 0, name)
            arguments = [entry.get("train") or {}] * 2
        else:
            test = _load(entry["set"], folder, entry["test"], download=True)
            parts = np.arange(len(train)), np.arange(len(test))
            arguments = [entry.get("train") or {}, entry["test"]]
        files = [
            (str(path.relative_to(folder)), path.stat().st_size)
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        ]
        splits = {
            split: _split(split, entry["set"], folder, chosen, part, classes, files)
            for split, chosen, part in zip(("train", "test"), arguments, parts, strict=True)
        }
        templates = tuple(entry.get("templates") or self.templates)
        return Domain(name, classes, templates, splits, f"torchvision {entry['set']}", "not stated")


def _split(
    name: str,
    kind: str,
    folder: str,
    arguments: dict[str, Any],
    positions: np.ndarray,
    classes: tuple[str, ...],
    files: list[tuple[str, int]],
) -> Split:
    items = [(row, int(position)) for row, position in enumerate(positions)]
    chunks = tuple(
        TorchvisionChunk(
            kind, folder, tuple(sorted(arguments.items())), tuple(items[i : i + CHUNK_ROWS])
        )
        for i in range(0, len(items), CHUNK_ROWS)
    )
    # torchvision checks its downloads' content itself: names and sizes tell versions apart.
    digest = combine(name, kind, arguments, [p for _, p in items], classes, files)
    return Split(name, chunks, len(items), digest)


def _load(kind: str, folder: str, arguments: dict[str, Any], download: bool) -> Any:
    """Construct a torchvision data set, fetching it where it is not there yet."""
    from torchvision import datasets

    factory = getattr(datasets, kind, None)
    if factory is None:
        raise UserError(f"stream.options.sets: torchvision.datasets has no {kind!r}")
    accepted = inspect.signature(factory).parameters
    given = {"root": folder, **arguments} if "root" in accepted else dict(arguments)
    try:
        try:
            return factory(**given)
        except (RuntimeError, OSError):
            if not download or "download" not in accepted:
                raise
            Path(folder).mkdir(parents=True, exist_ok=True)
            return factory(**given, download=True)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise UserError(f"stream: torchvision cannot load {kind}: {one_line(error)}") from None
