"""Encoded image bytes -> RGB uint8 of the wanted size, or a reason in words.

The header's pixel count is checked before anything is decoded, and only raster formats are
opened, so neither a decompression bomb nor a file that starts another program costs anything.
Metadata say nothing about pixels: no image is refused for them.
"""

from __future__ import annotations

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageOps

from archipelago.pipeline.streams.containers import bands_of, odd_bands, without_metadata
from archipelago.pipeline.streams.files import one_line

log = logging.getLogger(__name__)

VERSION = 2  # raise it when pixels would come out differently: caches are keyed by it
# Formats that carry a signature and declare their size up front (ICO hides a PNG of any size).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI")
ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112  # tag of EXIF
EXTREME_ASPECT = 4  # longer images lose their ends before they are resized: memory stays bounded


class BadImage(Exception):
    """This row has no usable image; the message is the reason for the quarantine table."""


class NotAnImage(BadImage):
    """The bytes are of no known image format."""


class TooManyPixels(BadImage):
    """The header declares more pixels than are decoded."""


def decode(data: bytes | None, max_pixels: int) -> Image.Image:
    """Decode as a person would see it: first frame, upright, alpha on white, RGB.

    Args:
        data: the encoded file.
        max_pixels: images whose header declares more are refused undecoded.

    Returns:
        An RGB image.

    Raises:
        BadImage: with the reason.
    """
    if data is None:
        raise BadImage("no image (null)")
    if len(data) == 0:
        raise BadImage("empty image (0 bytes)")
    if reason := odd_bands(data):
        raise BadImage(reason)
    try:
        return _decoded(data, max_pixels)
    except TooManyPixels:
        raise
    except BadImage:
        plain = without_metadata(data)
        if plain is None:
            raise
    return _decoded(plain, max_pixels)


def _decoded(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = _open(data, max_pixels)
        image.load()
        _turn_upright(image)
        return to_rgb(image)
    except BadImage:
        raise
    except Exception as error:  # decoders raise nearly everything: OSError, SyntaxError, struct...
        raise BadImage(f"cannot decode: {type(error).__name__}: {one_line(error)}") from None


def header_size(data: bytes) -> tuple[int, int, bool] | None:
    """(H, W) that a file's header states and whether it is stored upright; None if no image."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return image.height, image.width, image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # whatever it is, decoding will say why
        return None


def fit(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Shortest side to `size` (bicubic, antialiased), then the centre crop: (S, S, 3) uint8.

    An image that is already S x S comes back unchanged to the bit. The geometry is that of
    torchvision's Resize and CenterCrop.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise BadImage(f"array of {image.dtype} {image.shape} is not (H, W, 3) uint8")
        if image.shape[:2] == (size, size):
            return image
        image = Image.fromarray(image)
    if image.size != (size, size):
        image = _centre(image, EXTREME_ASPECT * min(image.size))
        short = min(image.size)
        wide, high = (int(size * side / short) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        image = _centre(image, size)
    return np.asarray(image)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # builds differ in AVIF, JPEG2000


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.UnidentifiedImageError:
        if bands := bands_of(data):
            raise BadImage(f"cannot decode: {bands}") from None
        raise NotAnImage("not an image, or of an unknown format") from None
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"too many pixels: {one_line(error)}") from None
    wide, high = image.size
    if wide * high > max_pixels:
        raise TooManyPixels(
            f"too many pixels: {wide} x {high} is over stream.max_pixels={max_pixels}"
        )
    if wide < 1 or high < 1:
        raise BadImage(f"no pixels: {wide} x {high}")
    return image


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # a broken EXIF block says nothing about the pixels
        log.debug("EXIF orientation ignored: %s", error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: alpha on white, deep greys by their high byte; raises where none fits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(image)).convert("RGB")
    if image.mode in ALPHA or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    try:
        image = image.convert("RGBA")
    except (ValueError, TypeError):  # a transparent colour that the mode cannot hold
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _to_bytes(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits -> (H, W) uint8, scaled by what their range suggests."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = values.max()
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        values = values // 256
    elif image.mode == "F" and top <= 1.0:
        values = values * 255
    elif top > 255:
        values = values // (256 if top <= 65535 else 2**23)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _centre(image: Image.Image, longest: int) -> Image.Image:
    """Crop the centre so that no side is longer than `longest`."""
    wide, high = image.size
    w, h = min(wide, longest), min(high, longest)
    if (w, h) == (wide, high):
        return image
    left, top = round((wide - w) / 2.0), round((high - h) / 2.0)
    return image.crop((left, top, left + w, top + h))
