"""Image files of a request to pixels, once their headers say that they are cheap enough.

What a picture looks like is `pipeline.streams.decode`'s; what it may cost is said here. Figures
are bytes a pixel at the peak, measured for each format (`jobs/bench_decoding.py`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from archipelago.actors.http.problems import Problem
from archipelago.pipeline.settings import ServingSettings
from archipelago.pipeline.streams.decode import (
    ALPHA,
    BadImage,
    NotAnImage,
    TooManyPixels,
    decode,
    fit,
)

# What is read over HTTP. Left out: what Pillow decodes in Python, byte by byte (QOI, PPM, and the
# run-length kind of BMP).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000")
MOST_SCANS = 32  # of a progressive JPEG: encoders write a dozen, and each is a pass over the image
OF_WEBP = 17  # bytes a pixel, half of which are taken when such a file is opened
SLOW = {"WEBP": 4, "AVIF": 6, "JPEG2000": 6, "TIFF": 2}  # times as long a pixel as JPEG
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.S)
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_START_OF_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True)
class Cost:
    """What decoding is expected to take: bytes at the peak, and work in pixels of plain JPEG."""

    memory: int
    work: int


def look(data: bytes, limits: ServingSettings, most: int, where: str = "image: ") -> Cost:
    """What a file would cost, by its header; one of more than `most` bytes may not be opened.

    Raises:
        Problem: 413 too large, 415 no image or a format that is not read here, 422 a broken one.
    """
    if not data:
        raise Problem(422, f"{where}empty image (0 bytes)")
    wide, high = _webp_size(data) or (0, 0)
    _check_count(wide, high, limits, where)
    if wide * high * OF_WEBP > most:
        return Cost(wide * high * OF_WEBP, wide * high * SLOW["WEBP"])
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            wide, high = image.size
            _check_count(wide, high, limits, where)
            if any(tile[0] in Image.DECODERS for tile in image.tile):
                raise Problem(415, f"{where}this kind of {image.format} is not read over HTTP")
            scans = _scans(data) if image.format in ("JPEG", "MPO") else 1
            if scans > MOST_SCANS:
                raise Problem(422, f"{where}more than {MOST_SCANS} scans")
            memory = wide * high * bytes_per_pixel(image, scans)
            if memory > limits.decode_mib * 2**20:
                raise too_much(
                    f"{where}{wide} x {high} {image.format} ({image.mode})", memory, limits
                )
            slow = SLOW.get(image.format or "", 1) * max(1, scans // 4)
            return Cost(memory, wide * high * slow + len(data) // 2)
    except Problem:
        raise
    except Image.UnidentifiedImageError:
        read = ", ".join(_formats())
        raise Problem(415, f"{where}not an image, or none of {read}") from None
    except Image.DecompressionBombError:
        raise _too_many(limits, where) from None
    except MemoryError:
        raise
    except Exception as error:  # a header that says nothing sensible
        raise Problem(422, f"{where}cannot decode: {type(error).__name__}") from None


def bytes_per_pixel(image: Image.Image, scans: int = 1) -> int:
    """Bytes a pixel at the peak of decoding an opened image and turning it into RGB."""
    mode, kind = image.mode, image.format
    bands = len(image.getbands())
    stored = {"1": 1, "L": 1, "P": 1}.get(mode, 2 if mode.startswith("I;16") else 4)
    kept = 0  # what the decoder holds while the image is converted
    decoding = stored + 1
    if kind in ("JPEG", "MPO") and scans > 1:
        decoding = stored + 2 * bands
    elif kind == "WEBP":
        decoding, kept = OF_WEBP, 8
    elif kind == "AVIF":
        decoding, kept = 14, bands
    elif kind == "JPEG2000":
        decoding = 5 * bands + stored
    elif kind == "TIFF":
        decoding = stored + 2 * bands  # a file may be one strip, of 16 bits a band
    if mode.startswith("I") or mode == "F":
        converted = 34  # arithmetic in 64 bits
    elif mode in ALPHA or "transparency" in image.info:
        converted = stored + 17
    elif mode == "RGB":
        converted = stored
    else:
        converted = stored + 5
    return max(decoding, max(converted, 2 * stored) + kept)  # EXIF may say that it lies on its side


def pixels(files: Sequence[bytes], size: int, limits: ServingSettings) -> np.ndarray:
    """Pixels (B, S, S, 3) as a person would see them.

    Raises:
        Problem: 413 too many pixels, 415 no image, 422 a broken one.
    """
    images = []
    for index, data in enumerate(files):
        where = named(index, len(files))
        try:
            images.append(fit(decode(data, limits.max_pixels), size))
        except TooManyPixels:
            raise _too_many(limits, where) from None
        except NotAnImage as error:
            raise Problem(415, f"{where}{error}") from None
        except BadImage as error:
            if "MemoryError" in str(error):
                raise MemoryError from None
            raise Problem(422, f"{where}{error}") from None
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def too_much(what: str, memory: int, limits: ServingSettings) -> Problem:
    """413 for what needs more memory than a decoder is given."""
    given = limits.decode_mib
    return Problem(413, f"{what}: takes {memory >> 20} MiB to decode, at most {given} are given")


def named(index: int, count: int) -> str:
    """How messages begin that speak of one image of several."""
    return f"image {index + 1}: " if count > 1 else "image: "


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_count(wide: int, high: int, limits: ServingSettings, where: str) -> None:
    if wide * high > limits.max_pixels:
        raise _too_many(limits, where)


def _too_many(limits: ServingSettings, where: str) -> Problem:
    return Problem(413, f"{where}more than {limits.max_pixels} pixels")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(W, H) of the canvas of a WebP file, from its first chunk."""
    head = data[:30].ljust(30, b"\0")
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        sides = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        sides = ((bits >> shift & 0x3FFF) + 1 for shift in (0, 14))
    else:
        sides = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    wide, high = sides
    return wide, high


def _scans(data: bytes) -> int:
    """Scans of a JPEG file, by its markers; counting stops where there are too many."""
    at, count = 2, 0
    while count <= MOST_SCANS and (found := _MARKER.search(data, at)):
        at, marker = found.end(), found[1][0]
        if marker == _END:
            break
        count += marker == _START_OF_SCAN
        if marker not in _ALONE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return count
