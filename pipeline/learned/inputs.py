"""Pictures in whatever form a person has them, as uint8 arrays of the backbone's size.

Shapes: B images, S side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.decode import BadImage, decode, fit

Picture = Any  # a PIL image, a path, encoded bytes, or an array (H, W, 3) uint8
MAX_PIXELS = 50_000_000


def pixels(images: Sequence[Picture] | np.ndarray, size: int) -> np.ndarray:
    """uint8 (B, S, S, 3) of pictures of any size and mode.

    Raises:
        UserError: a picture that cannot be read, named by its place or its path.
    """
    if isinstance(images, np.ndarray) and images.shape[1:] == (size, size, 3):
        return np.ascontiguousarray(images.astype(np.uint8, copy=False))
    parts = [_picture(image, place, size) for place, image in enumerate(images)]
    return np.stack(parts) if parts else np.zeros((0, size, size, 3), np.uint8)


def _picture(image: Picture, place: int, size: int) -> np.ndarray:
    name = f"image {place}"
    try:
        if isinstance(image, str | Path):
            name = str(image)
            image = Path(image).read_bytes()
        if isinstance(image, bytes | bytearray | memoryview):
            return np.asarray(fit(decode(bytes(image), MAX_PIXELS), size))
        if isinstance(image, Image.Image):
            file = io.BytesIO()
            image.save(file, "PNG")  # modes, palettes and transparency as everywhere
            return np.asarray(fit(decode(file.getvalue(), MAX_PIXELS), size))
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"an array must be (H, W, 3) uint8, not {array.shape} {array.dtype}")
        return np.asarray(fit(Image.fromarray(array), size))
    except (OSError, ValueError, SyntaxError, TypeError, BadImage) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: cannot be read as an image ({reason})") from None
