"""Files of PASCAL-Context to targets: label maps, people's parts, normals, saliency.

Shapes: H, W the image's pixels. What cannot be read or does not fit raises `BadTarget`. Sizes are
read from headers first: a target that does not fit its image costs nothing.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from archipelago.pipeline.streams.containers import without_metadata
from archipelago.pipeline.streams.files import one_line
from archipelago.pipeline.streams.pascal import matfiles
from archipelago.pipeline.streams.pascal.labels import NORMAL_LABELS, PART_OF, PERSON
from archipelago.pipeline.streams.targets import to_stored
from archipelago.pipeline.streams.thinning import thin

NUMBER = 8  # bytes of the widest number of a label map
SLACK = 1 << 16  # bytes of a .mat file beside its largest variable: names, and its creator's notes
ROWS = 256  # of normals that become vectors of floats at a time


class BadTarget(Exception):
    """This file holds no usable target; the message is the reason for the quarantine table."""


def label_map(data: bytes, high: int, wide: int) -> np.ndarray:
    """`LabelMap` of a .mat file of PASCAL-Context: (H, W) integers, 0 = unlabelled, 1..459."""
    found = np.asarray(_mat(data, NUMBER * high * wide + SLACK).get("LabelMap"))
    if found.dtype.kind not in "ui" or found.shape != (high, wide):
        raise BadTarget(f"LabelMap is {found.dtype} {found.shape}, the image {(high, wide)}")
    return found.astype(np.int64)


def edges(labels: np.ndarray) -> np.ndarray:
    """(H, W) uint8: where a label map changes, thinned to one pixel."""
    change = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differ = np.diff(labels, axis=axis) != 0
        change |= np.pad(differ, [(0, 1) if i == axis else (0, 0) for i in (0, 1)])
        change |= np.pad(differ, [(1, 0) if i == axis else (0, 0) for i in (0, 1)])
    return thin(change).astype(np.uint8)


def normals(data: bytes, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) int8 of a colour PNG, `2 v / 255 - 1`; none where no indoor label is."""
    high, wide = labels.shape
    pixels = png(data, high, wide, "RGB")
    vectors = np.empty(pixels.shape, np.int8)
    for at in range(0, high, ROWS):
        vectors[at : at + ROWS] = to_stored(2.0 * pixels[at : at + ROWS] / 255.0 - 1.0)
    vectors[~np.isin(labels, list(NORMAL_LABELS.values()))] = 0
    return vectors


def saliency(data: bytes, high: int, wide: int) -> np.ndarray:
    """(H, W) uint8 of a grey PNG: 1 above a half."""
    return (png(data, high, wide, "L") > 127).astype(np.uint8)


def labels(data: bytes, high: int, wide: int) -> np.ndarray:
    """(H, W) uint8 of a PNG of class numbers (palette or grey), 255 = ignored."""
    return png(data, high, wide, None)


def parts(data: bytes, high: int, wide: int, limit: int) -> np.ndarray:
    """(H, W) uint8: six parts of all people in a PASCAL-Part .mat file, 0 where there is none.

    Its masks are as many as there are pieces: they may unpack to `limit` bytes.
    """
    out = np.zeros((high, wide), np.uint8)
    try:
        things = np.atleast_1d(_mat(data, limit)["anno"].objects)
        for thing in things:
            if int(thing.class_ind) != PERSON:
                continue
            for piece in np.atleast_1d(thing.parts):
                out[_mask(piece.mask, high, wide)] = _part(str(piece.part_name))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise BadTarget(f"not a PASCAL-Part annotation: {one_line(error)}") from None
    return out


def png(data: bytes, high: int, wide: int, mode: str | None) -> np.ndarray:
    """Pixels of a PNG whose header states the image's size, (H, W) or (H, W, 3) uint8."""
    try:
        return _pixels(data, high, wide, mode)
    except BadTarget:
        plain = without_metadata(data)
        if plain is None:
            raise
    return _pixels(plain, high, wide, mode)


def _pixels(data: bytes, high: int, wide: int, mode: str | None) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.size != (wide, high):
            raise BadTarget(
                f"target of {image.width} x {image.height} pixels for an image of {wide} x {high}"
            )
        if mode is None and image.mode not in ("P", "L"):
            raise BadTarget(f"PNG of mode {image.mode}; class numbers need a palette or grey one")
        return np.asarray(image if mode is None else image.convert(mode))
    except BadTarget:
        raise
    except Exception as error:  # decoders raise nearly everything
        raise BadTarget(f"cannot decode: {one_line(error)}") from None


def _part(name: str) -> int:
    for known in (name, name[1:] if name[:1] in ("l", "r") else name):
        if known in PART_OF:
            return PART_OF[known]
    raise BadTarget(f"part {name!r} is unknown")


def _mask(mask: Any, high: int, wide: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != (high, wide):
        raise BadTarget(f"mask of {mask.shape} for an image of {(high, wide)}")
    return mask.astype(bool)


def _mat(data: bytes, limit: int) -> dict[str, Any]:
    try:
        return matfiles.load(data, limit)
    except matfiles.BadMat as error:
        raise BadTarget(str(error)) from None
