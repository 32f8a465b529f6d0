"""What a row of a dense task holds beside its image: one target a pixel, checked and fitted.

Shapes: H, W the source's pixels, S side of a cached image.

How each kind is stored (uint8, 255 = ignored; normals int8):

    segmentation   (S, S)      class of the pixel
    parts          (S, S)      part of the pixel, 0 = no part
    saliency       (S, S)      1 = salient
    normals        (S, S, 3)   unit vector times 127 (x right, y up, z to the viewer); 0 0 0 = none
    edges          (S, S)      1 = edge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

VERSION = 1  # raise it when fitted targets would come out differently: caches are keyed by it
IGNORE = 255
SCALE = 127  # of a unit normal in int8: an error of a third of a degree at most


@dataclass(frozen=True)
class Kind:
    """How the targets of one kind are stored; `classes` None = as many as the task has."""

    name: str
    dtype: type
    channels: int = 1
    classes: int | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("segmentation", np.uint8),
            Kind("parts", np.uint8),
            Kind("saliency", np.uint8, classes=2),
            Kind("normals", np.int8, channels=3, classes=0),
            Kind("edges", np.uint8, classes=2),
        )
    }
)


@dataclass(frozen=True)
class Unusable:
    """In the place of a target: why there is none. The row is quarantined for that task."""

    reason: str


@dataclass(frozen=True)
class Target:
    """One dense task of a stream: its name, its kind, and its number of classes."""

    name: str
    kind: str
    classes: int

    @property
    def dtype(self) -> type:
        """int8 for normals, else uint8."""
        return KINDS[self.kind].dtype

    def shape(self, size: int) -> tuple[int, ...]:
        """(S, S) or (S, S, 3)."""
        channels = KINDS[self.kind].channels
        return (size, size) if channels == 1 else (size, size, channels)

    def bytes(self, size: int) -> int:
        """Stored bytes of one target."""
        return size * size * KINDS[self.kind].channels

    def blank(self, size: int) -> np.ndarray:
        """A target that says nothing: every pixel is ignored."""
        fill = 0 if self.kind == "normals" else IGNORE
        return np.full(self.shape(size), fill, self.dtype)

    def fit(
        self, value: np.ndarray | Unusable | None, source: tuple[int, int], size: int
    ) -> np.ndarray | Unusable:
        """Check a target of an image of (H, W) = `source` and give it the image's geometry.

        Labels take the nearest pixel, an edge survives wherever its line passes, normals are
        averaged over the valid pixels and made unit vectors again.

        Returns:
            `shape(size)` as stored, or the reason why it cannot be.
        """
        if isinstance(value, Unusable):
            return value
        if value is None:
            return Unusable(f"{self.name}: no target (missing)")
        reason = self._wrong(value, source)
        if reason:
            return Unusable(f"{self.name}: {reason}")
        if source == (size, size):
            return value
        if self.kind == "normals":
            return _fit_normals(value, size)
        if self.kind == "edges":
            return _fit_edges(value, size)
        return _resize(value, size, Image.Resampling.NEAREST)

    def _wrong(self, value: np.ndarray, source: tuple[int, int]) -> str | None:
        if value.dtype != self.dtype:
            return f"holds {value.dtype}, not {np.dtype(self.dtype)}"
        shape = source if KINDS[self.kind].channels == 1 else (*source, KINDS[self.kind].channels)
        if value.shape != shape:
            return f"target of {_sides(value.shape)} pixels for an image of {_sides(source)}"
        if self.kind == "normals":
            return None
        labels = np.flatnonzero(np.bincount(value.ravel(), minlength=256)[:IGNORE])
        if len(labels) and labels[-1] >= self.classes:
            return f"label {labels[-1]} is outside 0..{self.classes - 1}"
        return None


def to_stored(normals: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of any length to int8; what is shorter than a tenth is no normal."""
    length = np.sqrt((normals.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
    unit = np.where(length > 0.1, normals / np.maximum(length, 1e-9), 0.0)
    return np.rint(unit * SCALE).astype(np.int8)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in reversed(shape[:2]))


def _resize(plane: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    """Shortest side to `size`, then the centre: the geometry of `decode.fit`."""
    high, wide = plane.shape
    short = min(high, wide)
    image = Image.fromarray(plane).resize((int(size * wide / short), int(size * high / short)), how)
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _fit_edges(edges: np.ndarray, size: int) -> np.ndarray:
    """An edge wherever one passes; ignored where nothing else is known."""
    how = Image.Resampling.BOX if min(edges.shape) > size else Image.Resampling.NEAREST
    line = _resize((edges == 1).astype(np.float32), size, how) > 0
    known = _resize((edges != IGNORE).astype(np.float32), size, how) > 0
    return np.where(line, 1, np.where(known, 0, IGNORE)).astype(np.uint8)


def _fit_normals(normals: np.ndarray, size: int) -> np.ndarray:
    how = Image.Resampling.BOX if min(normals.shape[:2]) > size else Image.Resampling.NEAREST
    planes = [_resize(normals[..., i].astype(np.float32), size, how) for i in range(3)]
    return to_stored(np.stack(planes, axis=-1) / SCALE)
