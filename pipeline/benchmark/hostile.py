"""Image files that cost far more than their bytes suggest, written by hand or with Pillow."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

WIDE = 7000  # 49 megapixels, just below the default limit


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(wide: int, high: int, depth: int, colour: int, rest: bytes = b"") -> bytes:
    """A PNG file of zeros; `colour` 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA; `rest` after IHDR."""
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    packer, line = zlib.compressobj(9), b"\0" * (1 + wide * bands * depth // 8)
    lines = b"".join(packer.compress(line) for _ in range(high)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + rest + chunk(b"IDAT", lines) + chunk(b"IEND")


def webp_lossless(wide: int, high: int) -> bytes:
    """A WebP file of 34 bytes that declares a transparent image of one colour."""
    bits = (wide - 1) | (high - 1) << 14 | 1 << 28
    data = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08\x00\x00\x00\x00\x00\x00"
    data += b"\0" * (len(data) % 2)
    part = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(part)) + b"WEBP" + part


def bmp_runs(wide: int, high: int) -> bytes:
    """A run-length BMP file: Pillow reads these in Python."""
    palette = b"\0\0\0\0" * 256
    runs = bytes([255, 0]) * 200 + b"\0\1"
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, wide, high, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + info + palette + runs


def qoi(wide: int, high: int) -> bytes:
    """A QOI file of runs."""
    runs = b"\xfd" * (wide * high // 62 + 1)
    return b"qoif" + struct.pack(">IIBB", wide, high, 4, 0) + runs + b"\0" * 7 + b"\1"


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    data = encoded(Image.new("RGB", (side, side), (200, 10, 10)), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * count + data[end:]


def hostile() -> dict[str, bytes]:
    """Files by what they are; each was slow, large or both."""
    dark = Image.new("RGB", (WIDE, WIDE))
    return {
        "webp of 34 bytes": webp_lossless(WIDE, WIDE),
        "largest webp": webp_lossless(16383, 16383),
        "run-length bmp": bmp_runs(WIDE, WIDE),
        "qoi": qoi(2000, 2000),
        "plain ppm": b"P3 900 900 255\n" + b"1 2 3 " * 160_000,
        "png grey": png(WIDE, WIDE, 8, 0),
        "png rgba": png(WIDE, WIDE, 8, 6),
        "png of 16 bits": png(WIDE, WIDE, 16, 0),
        "png of 16 bits rgba": png(WIDE, WIDE, 16, 6),
        "png of many chunks": png(64, 64, 8, 2, chunk(b"abCd") * 80_000),
        "png of some chunks": png(64, 64, 8, 2, chunk(b"abCd") * 15_000),
        "gif": encoded(Image.new("P", (WIDE, WIDE)), "GIF"),
        "jpeg": encoded(dark, "JPEG"),
        "jpeg of many scans": scans(2000, 200),
        "tiff": encoded(dark, "TIFF", compression="tiff_deflate"),
        "jpeg 2000": encoded(Image.new("RGB", (3000, 3000)), "JPEG2000"),
        "avif": encoded(Image.new("RGB", (3000, 3000)), "AVIF", speed=10),
    }
