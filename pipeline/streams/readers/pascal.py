"""Reader `pascal`: PASCAL-Context with five dense tasks, in its benchmark's usual folder.

    <root>/JPEGImages/<id>.jpg
    <root>/ImageSets/Context/train.txt, val.txt              one id a line
    <root>/semseg/VOC12/<id>.png                             or semseg/pascal-context/, or semseg/
    <root>/human_parts/<id>.mat                              PASCAL-Part; or <id>.png of 0..6
    <root>/normals_distill/<id>.png
    <root>/sal_distill/<id>.png
    <root>/pascal-context/trainval/<id>.mat                  LabelMap: edges; where normals count

Tasks: `edges`, `human_parts`, `normals`, `sal`, `semseg`. Choose some with `stream.order`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.decode import header_size
from archipelago.pipeline.streams.domain import SPLITS, Domain, RawRow, Split
from archipelago.pipeline.streams.files import Root, combine
from archipelago.pipeline.streams.pascal import files
from archipelago.pipeline.streams.pascal.labels import CLASSES, PARTS
from archipelago.pipeline.streams.registry import read_options, register
from archipelago.pipeline.streams.targets import Target, Unusable

CHUNK_ROWS = 64
# Bytes a pixel that masks may unpack to: what the dearest image takes while it is decoded.
DEAREST = 32
LISTS, IMAGES, MAPS = "ImageSets/Context", "JPEGImages", "pascal-context/trainval"
OPTIONS = {"train": "train", "test": "val"}
TASKS = {
    "edges": (Target("edges", "edges", 2), ("inside", "edge")),
    "human_parts": (Target("human_parts", "parts", len(PARTS)), PARTS),
    "normals": (Target("normals", "normals", 0), ()),
    "sal": (Target("sal", "saliency", 2), ("background", "salient")),
    "semseg": (Target("semseg", "segmentation", len(CLASSES)), CLASSES),
}
# Where a task's file may lie, the first that is there.
PLACES = {
    "edges": ((MAPS, ".mat"),),
    "human_parts": (("human_parts", ".mat"), ("human_parts", ".png")),
    "normals": (("normals_distill", ".png"),),
    "sal": (("sal_distill", ".png"),),
    "semseg": (("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png"), ("semseg", ".png")),
}


@dataclass(frozen=True)
class PascalChunk:
    """Images as (row, id), and by task the file of each, None where there is none.

    Targets of images that have more than `max_pixels` are not read.
    """

    root: Root
    ids: tuple[tuple[int, str], ...]
    places: dict[str, tuple[str | None, ...]]
    maps: tuple[str | None, ...]
    max_pixels: int

    def rows(self) -> Iterator[RawRow]:
        """Read one image and its targets at a time."""
        for at, (row, name) in enumerate(self.ids):
            image = self.root.read(f"{IMAGES}/{name}.jpg")
            yield RawRow(row, image, None, self._targets(at, image))

    def files(self, rows: Collection[int]) -> dict[int, str]:
        """Paths of the images."""
        return {row: f"{IMAGES}/{name}.jpg" for row, name in self.ids if row in rows}

    def _targets(self, at: int, image: bytes) -> dict[str, np.ndarray | Unusable]:
        header = header_size(image)
        if header is None:
            return {}  # the image is quarantined as a whole
        high, wide, upright = header
        if high * wide > self.max_pixels:
            return {}  # so is this one, undecoded
        if not upright:
            turned = Unusable("the image is stored turned (EXIF); its targets are not")
            return dict.fromkeys(self.places, turned)
        return {task: self._target(task, at, high, wide) for task in self.places}

    def _target(self, task: str, at: int, high: int, wide: int) -> np.ndarray | Unusable:
        path = self.places[task][at]
        try:
            if path is None:
                raise files.BadTarget("no target (no file)")
            data = self.root.read(path)
            if task == "semseg":
                return files.labels(data, high, wide)
            if task == "sal":
                return files.saliency(data, high, wide)
            if task == "human_parts":
                if path.endswith(".mat"):
                    return files.parts(data, high, wide, DEAREST * self.max_pixels)
                return files.labels(data, high, wide)
            if task == "normals":
                return files.normals(data, self._labels(at, high, wide))
            return files.edges(files.label_map(data, high, wide))
        except files.BadTarget as error:
            return Unusable(f"{task}: {error}" if path is None else f"{path}: {error}")

    def _labels(self, at: int, high: int, wide: int) -> np.ndarray:
        path = self.maps[at]
        if path is None:
            raise files.BadTarget(f"{MAPS} has no file that says where normals count")
        return files.label_map(self.root.read(path), high, wide)


@register("pascal")
class PascalReader:
    """The five tasks of the PASCAL-Context multi-task benchmark."""

    def __init__(self, settings: StreamSettings, seed: int) -> None:
        self.options = read_options(settings.options, OPTIONS)
        self.root = Root.open(settings.root)
        self.max_pixels = settings.max_pixels
        wanted = settings.order or [t for stage in settings.stages or () for t in stage]
        self.tasks = sorted(set(wanted or TASKS) & set(TASKS))
        self._splits: dict[str, Split] = {}

    def names(self) -> list[str]:
        """The five tasks, alphabetical."""
        return sorted(TASKS)

    def domain(self, name: str) -> Domain:
        """One task; all chosen ones share the images. Lists the files and hashes their content."""
        if not self._splits:
            self._splits = {split: self._split(split) for split in SPLITS}
        target, classes = TASKS[name]
        return Domain(
            *(name, classes, (), self._splits, "PASCAL-Context, multi-task", "see its terms"),
            target.kind,
        )

    def _split(self, split: str) -> Split:
        ids = self._ids(split)
        images = self._names(IMAGES, ".jpg", "JPEG images")
        for name in ids:
            if name not in images:
                raise UserError(
                    f"{self.root.shown()}/{IMAGES}/{name}.jpg: missing, but listed in {LISTS}"
                )
        places = {task: self._places(task, ids) for task in self.tasks}
        maps: tuple[str | None, ...] = (None,) * len(ids)
        if "normals" in self.tasks:
            there = self._names(MAPS, ".mat", "the label maps that say where normals count")
            maps = tuple(f"{MAPS}/{i}.mat" if i in there else None for i in ids)
        paths = [f"{IMAGES}/{name}.jpg" for name in ids]
        paths += [p for column in (*places.values(), maps) for p in column if p is not None]
        known = dict(zip(paths, self.root.sha256(paths), strict=True))
        rows = tuple(enumerate(ids))
        chunks = tuple(
            PascalChunk(
                *(self.root, rows[i : i + CHUNK_ROWS]),
                {task: column[i : i + CHUNK_ROWS] for task, column in places.items()},
                maps[i : i + CHUNK_ROWS],
                self.max_pixels,
            )
            for i in range(0, len(ids), CHUNK_ROWS)
        )
        digest = combine(split, ids, known, self.tasks)
        return Split(split, chunks, len(ids), digest, tuple(TASKS[task][0] for task in self.tasks))

    def _ids(self, split: str) -> list[str]:
        file = f"{LISTS}/{self.options[split]}.txt"
        if not self.root.exists(file):
            raise UserError(
                f"{self.root.shown()}/{file}: missing; it lists the images of the {split} split "
                f"(stream.options.{split})"
            )
        ids = self.root.read(file).decode(errors="replace").split()
        if not ids:
            raise UserError(f"{self.root.shown()}/{file}: lists no image")
        twice = {name for name in ids if ids.count(name) > 1} if len(set(ids)) < len(ids) else set()
        if twice:
            raise UserError(f"{self.root.shown()}/{file}: lists {min(twice)} twice")
        return ids

    def _places(self, task: str, ids: list[str]) -> tuple[str | None, ...]:
        """The file of each image, or None; refuses a task of which nothing is there."""
        found = [(place, end, self._stems(place, end)) for place, end in PLACES[task]]
        if not any(stems for _, _, stems in found):
            others = [name for name in self.tasks if name != task]
            raise UserError(
                f"{self.root.shown(PLACES[task][0][0])}: holds no {PLACES[task][0][1]} files for "
                f"task {task!r}; fetch them, or choose others: stream.order=[{','.join(others)}]"
            )
        return tuple(
            next((f"{place}/{i}{end}" for place, end, stems in found if i in stems), None)
            for i in ids
        )

    def _names(self, place: str, end: str, what: str) -> set[str]:
        names = self._stems(place, end)
        if not names:
            raise UserError(f"{self.root.shown()}/{place}: holds no {end} files, {what}")
        return names

    def _stems(self, place: str, end: str) -> set[str]:
        return {n.removesuffix(end) for n in self.root.child(place).files() if n.endswith(end)}
