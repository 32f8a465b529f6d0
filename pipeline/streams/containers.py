"""What a file says beside its pixels: PNG's metadata do not matter, TIFF's bands do."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import TiffImagePlugin

PNG = b"\x89PNG\r\n\x1a\n"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
EXIF = b"eXIf"
PIXELS = (b"tRNS",)  # the only chunk in small letters that a pixel depends on
WIDTH, SAMPLES, BITS, PHOTOMETRIC, EXTRA = 256, 277, 258, 262, 338  # tags of TIFF
ALPHA = (1, 2)  # kinds of an extra sample: associated and unassociated alpha
# Samples of a pixel by its interpretation: grey (two ways), RGB, palette, mask, CMYK, YCbCr, Lab.
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}


def without_metadata(data: bytes) -> bytes | None:
    """A PNG with its pixels and its orientation alone; None for what is no PNG or has no more.

    Text and colour profiles of any size, and whatever is damaged in them, say nothing about pixels.
    """
    if not data.startswith(PNG):
        return None
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        body, crc = data[at + 4 : end - 4], int.from_bytes(data[end - 4 : end], "big")
        critical = not kind[0] & 0x20
        if critical or kind in PIXELS or (kind == EXIF and zlib.crc32(body) == crc):
            kept.append(data[at:end])
        at = end
    kept.append(data[at:])
    plain = b"".join(kept)
    return plain if len(plain) < len(data) else None


def odd_bands(data: bytes) -> str | None:
    """Why a TIFF's bands are not those of a picture, with their number and bits; None if they are.

    Grey, RGB, palette, CMYK, YCbCr and Lab are pictures, each with one alpha band at most.
    """
    tags = _tags(data)
    if tags is None or not tags.get(WIDTH):
        return None
    samples, kind = _first(tags.get(SAMPLES, 1)), _first(tags.get(PHOTOMETRIC))
    colours = COLOURS.get(kind, 3)
    more = samples - colours
    extra = tags.get(EXTRA, ())
    extra = tuple(extra) if isinstance(extra, tuple | list) else (extra,)
    if more <= 0 or (more == 1 and extra[:1] and extra[0] in ALPHA):
        return None
    bits = tags.get(BITS, 1)
    wide = sorted(set(bits)) if isinstance(bits, tuple | list) else [bits]
    return (
        f"TIFF of {samples} bands of {' and '.join(str(b) for b in wide)} bits, not grey or RGB: "
        "choose three bands and write them as RGB"
    )


def bands_of(data: bytes) -> str | None:
    """A TIFF's bands in words, for what cannot be read; None for what is no TIFF."""
    tags = _tags(data)
    if tags is None:
        return None
    samples, bits = _first(tags.get(SAMPLES, 1)), _first(tags.get(BITS, 1))
    return f"TIFF of {samples} band{'s' * (samples != 1)} of {bits} bits"


def _tags(data: bytes) -> Mapping[int, Any] | None:
    """The first directory of a TIFF; None for what is none, or is damaged."""
    if not data.startswith(TIFFS):
        return None
    try:
        file = io.BytesIO(data)
        header = file.read(16 if data[2:3] == b"+" or data[3:4] == b"+" else 8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        wanted = (WIDTH, SAMPLES, BITS, PHOTOMETRIC, EXTRA)
        return {tag: directory[tag] for tag in wanted if tag in directory}
    except Exception:  # decoding will say what is wrong
        return None


def _first(value: Any) -> int:
    try:
        return int(value[0] if isinstance(value, tuple | list) else value)
    except (TypeError, ValueError, IndexError):
        return -1
