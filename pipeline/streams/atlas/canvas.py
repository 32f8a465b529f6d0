"""Brushes that all atlas domains share: dice, integer sines, noise, colour ramps, camera and light.

Every byte must be the same on every machine. Hence randomness is raw PCG64 output (a stable
stream), waves come from an integer table, and pixels are made with integer numpy and 8-bit Pillow
operations: no floating-point reduction and no system font decides a pixel.

Angles are counted in `TURN` steps a full turn, colours are RGB triples of 0..255, canvases are
`CANVAS` pixels wide and are reduced to `SIZE` at the end (cheap antialiasing).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

SIZE = 64
CANVAS = 128
TURN = 1024
ONE = 1024

Colour = tuple[int, int, int]

_SINE = np.rint(np.sin(np.arange(TURN) * (2 * np.pi / TURN)) * ONE).astype(np.int32)


class Dice:
    """Random numbers that depend on nothing but `key` (stable across machines and versions)."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "little"))

    def below(self, bound: int) -> int:
        """A whole number in 0..bound-1."""
        return (int(self._bits.random_raw()) >> 16) % bound

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 throws."""
        return self.below(100) < percent

    def pick(self, options: Sequence):
        """One of `options`."""
        return options[self.below(len(options))]

    def bytes(self, *shape: int) -> np.ndarray:
        """Uniform uint8 values of `shape`."""
        count = int(np.prod(shape))
        raw = np.asarray(self._bits.random_raw((count + 7) // 8), dtype="<u8")
        return raw.view(np.uint8)[:count].reshape(shape)

    def near(self, colour: Colour, spread: int) -> Colour:
        """`colour`, each channel moved by at most `spread`."""
        return tuple(min(255, max(0, c + self.between(-spread, spread))) for c in colour)  # type: ignore[return-value]

    def hue(self, saturation: tuple[int, int], value: tuple[int, int]) -> Colour:
        """A colour of any hue with saturation and value (0..255) in the given ranges."""
        return hsv(self.below(1536), self.between(*saturation), self.between(*value))


def hsv(hue: int, saturation: int, value: int) -> Colour:
    """RGB of a hue in 0..1535 and a saturation and value in 0..255."""
    sector, step = divmod(hue % 1536, 256)
    low = value * (255 - saturation) // 255
    rise, fall = low + (value - low) * step // 255, value - (value - low) * step // 255
    table = ((value, rise, low), (fall, value, low), (low, value, rise))
    return (*table, (low, fall, value), (rise, low, value), (value, low, fall))[sector]


def luma(colour: Colour) -> int:
    """Perceived brightness of a colour, 0..255."""
    return (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) // 1000


def contrasting(dice: Dice, other: Colour, gap: int = 70) -> Colour:
    """A vivid colour whose brightness differs from that of `other` by at least `gap`."""
    colour = dice.hue((90, 255), (60, 255))
    for _ in range(40):
        if abs(luma(colour) - luma(other)) >= gap:
            return colour
        colour = dice.hue((60, 255), (30, 255))
    return (255, 255, 255) if luma(other) < 128 else (10, 10, 10)


def sine(angle):
    """Sine times `ONE` of an angle (int or integer array) in `TURN` steps."""
    return _SINE[np.asarray(angle) % TURN]


def cosine(angle):
    """Cosine times `ONE` of an angle in `TURN` steps."""
    return sine(np.asarray(angle) + TURN // 4)


def polar(radius: int, angle: int) -> tuple[int, int]:
    """Whole-number x and y of a point at `radius` and `angle`, counted clockwise from the right."""
    return radius * int(cosine(angle)) // ONE, radius * int(sine(angle)) // ONE


@cache
def grid(size: int = CANVAS) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x, y), int32 (size, size), with (0, 0) in the middle."""
    y, x = np.mgrid[0:size, 0:size].astype(np.int32) - size // 2
    x.flags.writeable = y.flags.writeable = False
    return x, y


def turned(angle: int, size: int = CANVAS) -> tuple[np.ndarray, np.ndarray]:
    """`grid` turned by `angle`, in sixteenths of a pixel."""
    x, y = grid(size)
    c, s = int(cosine(angle)), int(sine(angle))
    return (x * c + y * s) >> 6, (y * c - x * s) >> 6


def noise(dice: Dice, cells: int, octaves: int = 3, size: int = CANVAS) -> np.ndarray:
    """Smooth value noise, stretched to 0..255: int32 (size, size); `cells` bumps along an edge."""
    total = np.zeros((size, size), np.int32)
    for octave in range(octaves):
        edge = min(size, cells << octave)
        patch = Image.fromarray(dice.bytes(edge, edge)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        total += np.asarray(patch, np.int32) << (octaves - octave)
    low = int(total.min())
    return (total - low) * 255 // max(1, int(total.max()) - low)


def ramp(values: np.ndarray, *stops: Colour) -> np.ndarray:
    """Colour `values` (clipped to 0..255) along evenly spaced colour stops: uint8 (H, W, 3)."""
    position = np.arange(256) * (len(stops) - 1)
    left = np.minimum(position // 255, len(stops) - 2)
    colours = np.asarray(stops, np.int32)
    share = (position - left * 255)[:, None]
    table = (colours[left] * (255 - share) + colours[left + 1] * share) // 255
    return table.astype(np.uint8)[np.clip(values, 0, 255)]


def flat(colour: Colour, size: int = CANVAS) -> np.ndarray:
    """A canvas of one colour: uint8 (size, size, 3)."""
    return np.broadcast_to(np.asarray(colour, np.uint8), (size, size, 3)).copy()


def blend(under: np.ndarray, over: np.ndarray | Colour, mask: np.ndarray) -> np.ndarray:
    """`over` laid on `under` (H, W, 3) where `mask` (H, W), bool or 0..255, says so."""
    share = (mask.astype(np.int32) * 255 if mask.dtype == bool else mask.astype(np.int32))[
        ..., None
    ]
    mixed = under.astype(np.int32) * (255 - share) + np.asarray(over, np.int32) * share
    return (mixed // 255).astype(np.uint8)


def shade(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Multiply an image (H, W, 3) by `light` (H, W) / 256."""
    return np.clip(image.astype(np.int32) * light[..., None] >> 8, 0, 255).astype(np.uint8)


def camera(
    dice: Dice,
    image: Image.Image,
    *,
    turn: int = 0,
    zoom: tuple[int, int] = (100, 100),
    shift: int = 0,
    tilt: int = 0,
    fill: int | Colour = 0,
) -> Image.Image:
    """Look at `image` anew: turned by up to `turn` steps, zoomed by percent, shifted, tilted.

    `tilt` is the largest perspective term in 1/100,000 a pixel. What lies outside becomes `fill`.
    """
    angle, scale = dice.between(-turn, turn), dice.between(*zoom)
    c, s = int(cosine(angle)) * 100 / (ONE * scale), int(sine(angle)) * 100 / (ONE * scale)
    middle_x, middle_y = image.width // 2, image.height // 2
    to_x, to_y = (middle_x + dice.between(-shift, shift), middle_y + dice.between(-shift, shift))
    g, h = dice.between(-tilt, tilt) / 100_000, dice.between(-tilt, tilt) / 100_000
    a, b, d, e = c + g * middle_x, s + h * middle_x, -s + g * middle_y, c + h * middle_y
    keep = 1 - g * to_x - h * to_y
    data = (
        a, b, middle_x - c * to_x - s * to_y - middle_x * (g * to_x + h * to_y),
        d, e, middle_y + s * to_x - c * to_y - middle_y * (g * to_x + h * to_y), g, h,
    )  # fmt: skip
    scaled = tuple(value / keep for value in data)
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, scaled, Image.Resampling.BILINEAR, fillcolor=fill
    )


def finish(dice: Dice, image: np.ndarray, *, grain: int = 14, light: int = 40) -> np.ndarray:
    """Reduce a canvas to (SIZE, SIZE, 3) uint8 under uneven light, with sensor grain.

    `light` is the largest change of brightness across the image in 1/256, `grain` that of a pixel.
    """
    small = Image.fromarray(image).reduce(image.shape[0] // SIZE)
    x, y = grid(SIZE)
    across, down = dice.between(-light, light), dice.between(-light, light)
    gain = 256 + dice.between(-light, light // 2) + (x * across + y * down) // SIZE
    lit = np.asarray(small, np.int32) * gain[..., None] >> 8
    strength = dice.between(grain // 4, grain)
    specks = dice.bytes(2, SIZE, SIZE, 3).astype(np.int32)
    lit += (specks[0] + specks[1] - 255) * strength >> 8
    return np.clip(lit, 0, 255).astype(np.uint8)
