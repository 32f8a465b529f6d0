"""Odd images decode as a person expects; what cannot be used has a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from archipelago.pipeline.streams.decode import BadImage, decode, fit

LIMIT = 1_000_000
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, LIMIT))


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 8, y * 12, (x + y) * 5], -1).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG, grey (H, W) or RGB (H, W, 3), which Pillow itself cannot write in colour."""
    height, width = values.shape[:2]
    kind = 0 if values.ndim == 2 else 2
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(lines))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_is_exact(kind: str) -> None:
    assert (pixels(encode(Image.fromarray(gradient()), kind)) == gradient()).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_rgb_is_close(kind: str) -> None:
    got = pixels(encode(Image.fromarray(gradient()), kind, quality=95))
    assert np.abs(got.astype(int) - gradient()).mean() < 6


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    got = pixels(encode(red, "JPEG", quality=95)).reshape(-1, 3).mean(0)
    assert np.abs(got - [220, 30, 30]).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    got = pixels(encode(Image.fromarray(values), kind))
    assert (got == (values >> 8).astype(np.uint8)[..., None]).all()


def test_sixteen_bit_grey_of_a_pgm_file() -> None:
    values = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8)
    got = pixels(b"P5 8 8 65535\n" + values.tobytes())
    assert (got[..., 0] == (values >> 8)).all()


def test_sixteen_bit_rgb() -> None:
    values = gradient().astype(np.uint16) * 256 + 7
    assert (pixels(png16(values)) == gradient()).all()


def test_float_grey_in_zero_to_one() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    got = pixels(encode(Image.fromarray(values), "TIFF"))
    assert (got[..., 0] == np.rint(values * 255)).all()


@pytest.mark.parametrize("mode", ["1", "L"])
def test_one_and_eight_bit_grey(mode: str) -> None:
    grey = Image.fromarray(gradient()[..., 0]).convert(mode)
    assert (pixels(encode(grey, "PNG")) == np.asarray(grey.convert("RGB"))).all()


def test_palette_shows_its_colours() -> None:
    indexed = Image.fromarray(gradient()).quantize(16)
    assert (pixels(encode(indexed, "PNG")) == np.asarray(indexed.convert("RGB"))).all()


def test_alpha_lies_on_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    got = pixels(encode(Image.fromarray(rgba), "PNG"))
    assert (got[:2] == (200, 0, 0)).all() and (got[2:] == 255).all()


def test_grey_with_alpha_and_transparent_palette_lie_on_white() -> None:
    grey = Image.merge("LA", [Image.new("L", (4, 4), 90), Image.new("L", (4, 4), 0)])
    assert (pixels(encode(grey, "PNG")) == 255).all()
    indexed = Image.new("P", (4, 4), 1)
    indexed.putpalette([0, 0, 0, 10, 20, 30])
    assert (pixels(encode(indexed, "PNG", transparency=1)) == 255).all()
    assert (pixels(encode(indexed, "PNG", transparency=0)) == (10, 20, 30)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its side: turn it by 90 degrees clockwise to look at it
    image = Image.fromarray(gradient())
    got = pixels(encode(image, kind, exif=exif))
    want = np.rot90(gradient(), -1)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 8


def test_broken_exif_is_ignored() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 4
    assert pixels(encode(Image.fromarray(gradient()), "JPEG", exif=exif)).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == (255, 0, 0)).all()


def whole(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    data = whole(kind)
    decode(data, LIMIT)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)], LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "null"),
        (b"", "empty"),
        (b"\0" * 500, "not an image"),
        (b"<html>404 not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "cannot decode|not an image"),
    ],
)
def test_what_is_no_image_has_a_reason(data: bytes | None, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        decode(data, LIMIT)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_are_refused() -> None:
    data = bytearray(whole("PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImage, match="cannot decode"):
        decode(bytes(data), LIMIT)


@pytest.mark.parametrize("side", [1_001, 12_000, 60_000])
def test_bombs_are_refused_before_decoding(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    data += png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(BadImage, match="too many pixels"):
        decode(data, LIMIT)


def test_fit_leaves_the_right_size_alone() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (fit(Image.fromarray(noise), 64) == noise).all()
    assert (fit(noise, 64) == noise).all()


@pytest.mark.parametrize("shape", [(20, 30), (37, 21), (5, 9), (64, 65), (100, 350)])
def test_fit_is_torchvisions_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    reference = Compose([Resize(16, InterpolationMode.BICUBIC), CenterCrop(16)])
    want = np.asarray(reference(Image.fromarray(noise)))
    assert (fit(Image.fromarray(noise), 16) == want).all()


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (1, 1), (2, 300)])
def test_fit_copes_with_extreme_shapes(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    assert (fit(image, 16) == 77).all() and fit(image, 16).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_fit_refuses_arrays_that_are_no_image(array: np.ndarray) -> None:
    with pytest.raises(BadImage, match="is not"):
        fit(array, 8)


def tiff(values: np.ndarray, kind: int, extra: tuple[int, ...] = (), planar: int = 1) -> bytes:
    """An uncompressed TIFF of (H, W, bands), which Pillow itself writes for pictures only.

    Args:
        values: any unsigned or float type.
        kind: photometric interpretation, 1 grey, 2 RGB.
        extra: what each band beyond those is: 0 nothing stated, 2 alpha.
        planar: 1 bands side by side, 2 one after another.
    """
    high, wide, bands = values.shape
    planes = [values] if planar == 1 else [values[..., i] for i in range(bands)]
    strips = [plane.astype(values.dtype.newbyteorder("<")).tobytes() for plane in planes]
    bits, form = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [wide]),
        (257, "I", [high]),
        (258, "H", [bits] * bands),
        (259, "H", [1]),
        (262, "H", [kind]),
        (273, "I", [0] * len(strips)),
        (277, "H", [bands]),
        (278, "I", [high]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [planar]),
        *([(338, "H", list(extra))] if extra else []),
        (339, "H", [form] * bands),
    ]
    at = 8 + 2 + 12 * len(tags) + 4
    places = {}
    for tag, code, numbers in tags:
        places[tag] = at
        at += (
            struct.calcsize(code) * len(numbers) if struct.calcsize(code) * len(numbers) > 4 else 0
        )
    starts = np.cumsum([at, *map(len, strips)])[:-1].tolist()
    head, tail = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
    for tag, code, numbers in tags:
        data = struct.pack(f"<{len(numbers)}{code}", *(starts if tag == 273 else numbers))
        head += struct.pack("<HHI", tag, {"H": 3, "I": 4}[code], len(numbers))
        head += struct.pack("<I", places[tag]) if len(data) > 4 else data.ljust(4, b"\0")
        tail += data if len(data) > 4 else b""
    return head + bytes(4) + tail + b"".join(strips)


@pytest.mark.parametrize(
    ("bands", "dtype", "kind", "extra"),
    [
        (13, "u2", 1, (0,) * 12),
        (13, "u2", 1, ()),
        (4, "u1", 2, (0,)),
        (4, "u2", 1, (0, 0, 0)),
        (5, "u1", 2, (2, 0)),
        (8, "f4", 1, (0,) * 7),
        (2, "u1", 1, (0,)),
        (4, "u1", 2, ()),
    ],
)
@pytest.mark.parametrize("planar", [1, 2])
def test_bands_that_are_no_picture_are_named(
    bands: int, dtype: str, kind: int, extra: tuple[int, ...], planar: int
) -> None:
    values = np.random.default_rng(0).integers(0, 200, (8, 9, bands)).astype(dtype)
    with pytest.raises(BadImage, match=rf"TIFF of {bands} bands of {values.itemsize * 8} bits"):
        pixels(tiff(values, kind, extra, planar))


def test_bands_of_a_picture_are_read() -> None:
    colour = gradient()
    assert (pixels(tiff(colour, 2)) == colour).all()
    assert (pixels(tiff(colour, 2, planar=2)) == colour).all()
    assert (pixels(tiff(colour.astype("u2") * 256, 2)) == colour).all()
    solid = np.dstack([colour, np.full(colour.shape[:2], 255, np.uint8)])
    assert (pixels(tiff(solid, 2, (2,))) == colour).all()
    assert (pixels(tiff(colour[..., :1], 1))[..., 0] == colour[..., 0]).all()
    with pytest.raises(BadImage, match="TIFF of 1 band of 64 bits"):
        pixels(tiff(colour[..., :1].astype("f8"), 1))


def with_text(size: int = 3_000_000, times: int = 1) -> bytes:
    info = PngImagePlugin.PngInfo()
    for i in range(times):
        info.add_text(f"workflow{i}", "node " * (size // 5), zip=True)
    return encode(Image.fromarray(gradient()), "PNG", pnginfo=info)


def damaged(data: bytes, kind: bytes) -> bytes:
    """With a flipped bit in the named chunk, whose checksum is wrong from then on."""
    found = bytearray(data)
    found[found.index(kind) + 6] ^= 1
    return bytes(found)


@pytest.mark.parametrize(
    "data",
    [
        with_text(),
        with_text(900_000, times=90),  # each is small, all are too many
        encode(Image.fromarray(gradient()), "PNG", icc_profile=bytes(2_000_000)),
        encode(Image.fromarray(gradient()), "TIFF", icc_profile=bytes(2_000_000)),
        damaged(with_text(100), b"zTXt"),
        damaged(encode(Image.fromarray(gradient()), "PNG", icc_profile=bytes(99)), b"iCCP"),
    ],
    ids=["text", "texts", "profile", "TIFF's profile", "damaged text", "damaged profile"],
)
def test_metadata_say_nothing_about_pixels(data: bytes) -> None:
    assert (pixels(data) == gradient()).all()


def test_an_image_without_its_metadata_stands_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "node " * 600_000, zip=True)
    data = encode(Image.fromarray(gradient()), "PNG", exif=exif, pnginfo=info)
    assert (pixels(data) == np.rot90(gradient(), -1)).all()


def test_a_bomb_behind_metadata_is_still_refused() -> None:
    data = with_text()
    wide = data[:16] + struct.pack(">I", 60_000) + data[20:]
    ihdr = wide[12:29]
    with pytest.raises(BadImage, match="too many pixels"):
        decode(wide[:29] + struct.pack(">I", zlib.crc32(ihdr)) + wide[33:], LIMIT)
