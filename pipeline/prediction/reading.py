"""A part of a listing, decoded: pixels of what can be read, a reason for what cannot.

Shapes: n readable images, S side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from archipelago.pipeline.prediction.units import Encoded, Part, Unit
from archipelago.pipeline.streams.decode import BadImage, decode, fit


class Decoded(NamedTuple):
    """A unit's images.

    Attributes:
        unit: which.
        paths: of all its images.
        errors: of all its images, why one cannot be read; empty = it can.
        pixels: uint8 (n, S, S, 3) of those without an error.
    """

    unit: Unit
    paths: list[str]
    errors: list[str]
    pixels: np.ndarray


def decode_part(
    part: Part, wanted: Collection[str], size: int, max_pixels: int
) -> Iterator[Decoded]:
    """Read and decode the wanted units of a part, one after another.

    Args:
        part: of a listing.
        wanted: names of units.
        size: side of the backbone's input, in pixels.
        max_pixels: images whose header declares more are not decoded.

    Raises:
        UserError: the input as a whole cannot be reached.
    """
    for unit, images in part.read(wanted):
        paths, errors = [], []
        pixels, count = np.empty((unit.images, size, size, 3), np.uint8), 0
        for image in images:
            reason = image.fault
            if not reason:
                try:
                    pixels[count] = _pixels(image, size, max_pixels)
                    count += 1
                except BadImage as error:
                    reason = str(error)
            paths.append(image.path)
            errors.append(reason)
        yield Decoded(unit, paths, errors, pixels[:count])


def _pixels(image: Encoded, size: int, max_pixels: int) -> np.ndarray:
    data = image.data
    if data is not None and not isinstance(data, bytes):
        raise BadImage(f"no image ({type(data).__name__})")
    return fit(decode(data, max_pixels), size)
