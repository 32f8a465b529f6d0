"""Terrain, first half: ground, water and trees, and the seven kinds of wild land."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    ONE,
    TURN,
    Colour,
    Dice,
    blend,
    grid,
    noise,
    ramp,
    sine,
    turned,
)

GRASS, LEAVES, SAND, WATER = (104, 128, 70), (44, 78, 42), (214, 192, 150), (38, 88, 112)


def ground(dice: Dice, colour: Colour, depth: int = 30, cells: int = 5) -> np.ndarray:
    """Mottled land of one colour: uint8 (CANVAS, CANVAS, 3)."""
    dark = tuple(max(0, c - depth) for c in colour)
    light = tuple(min(255, c + depth) for c in colour)
    return ramp(noise(dice, cells, 4), dark, colour, light)  # type: ignore[arg-type]


def meadow(dice: Dice) -> np.ndarray:
    """Grassland of some season."""
    return ground(dice, dice.near(dice.pick((GRASS, GRASS, (128, 130, 78), (88, 116, 62))), 14), 18)


def sea(dice: Dice) -> np.ndarray:
    """Open water with a faint swell."""
    u, _ = turned(dice.below(TURN))
    swell = sine((u + noise(dice, 4) * 2) * TURN // dice.between(90, 160)) * 12 // ONE
    colour = dice.near(WATER, 22)
    light = tuple(min(255, c + 34) for c in colour)
    return ramp(noise(dice, 3) * 3 // 4 + swell + 20, colour, light)  # type: ignore[arg-type]


def crowns(dice: Dice, draw: ImageDraw.ImageDraw, count: int, tint: Colour = LEAVES) -> None:
    """`count` trees anywhere: a shadow, a crown, a lit side."""
    for _ in range(count):
        x, y, r = dice.below(CANVAS), dice.below(CANVAS), dice.between(3, 7)
        leaf = dice.near(tint, 16)
        draw.ellipse((x - r, y - r, x + r + 2, y + r + 2), fill=tuple(c // 2 for c in leaf))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=leaf)
        lit = tuple(c * 13 // 10 for c in leaf)
        draw.ellipse((x - r + 1, y - r + 1, x, y), fill=lit)


def pen(image: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.fromarray(image)
    return picture, ImageDraw.Draw(picture)


def box(draw: ImageDraw.ImageDraw, x: int, y: int, wide: int, tall: int, fill: Colour) -> None:
    """A rectangle around a middle point."""
    draw.rectangle((x - wide // 2, y - tall // 2, x + wide // 2, y + tall // 2), fill=fill)


def _bend(dice: Dice, swing: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels left and right of a winding line, and along it: int32 arrays, in pixels."""
    x, y = grid()
    slow = sine(y * dice.between(4, 8) + dice.below(TURN)) * swing // ONE
    fast = sine(y * dice.between(10, 16) + dice.below(TURN)) * (swing // 3) // ONE
    return x - slow - fast + noise(dice, 6) // 40 - 3, y


def _blob(dice: Dice, radius: int) -> np.ndarray:
    """Distance inside (> 0) or outside (< 0) an irregular round outline, in pixels."""
    x, y = grid()
    x, y = x - dice.between(-14, 14), (y - dice.between(-14, 14)) * dice.between(90, 130) // 100
    far = np.sqrt(x * x + y * y).astype(np.int32)
    return radius - far + (noise(dice, 3, 4) - 128) * radius // 220


def beach(dice: Dice) -> np.ndarray:
    across, _ = _bend(dice, dice.between(4, 14))
    across = across + dice.between(-14, 14)
    land = blend(meadow(dice), ground(dice, dice.near(SAND, 14), 16, 8), across < 34)
    wet = blend(land, (176, 156, 120), across < 5)
    shore = blend(wet, (244, 246, 244), across < dice.between(0, 3))
    return blend(
        blend(shore, (96, 160, 168), across < -3), sea(dice), np.clip(-across * 14 - 60, 0, 255)
    )


def desert(dice: Dice) -> np.ndarray:
    u, v = turned(dice.below(TURN))
    bend = noise(dice, 2, 3) * dice.between(4, 8) + noise(dice, 5, 2)
    phase = (u + bend + v // 6) * TURN // dice.between(200, 420) % TURN
    ridge = np.where(phase < 760, phase * 255 // 760, (TURN - phase) * 255 // 264)
    sand = dice.near((206, 158, 98), 20)
    dark, light = tuple(c * 68 // 100 for c in sand), tuple(min(255, c * 118 // 100) for c in sand)
    return ramp(ridge * 3 // 4 + noise(dice, 12) // 4, dark, sand, light)  # type: ignore[arg-type]


def forest(dice: Dice) -> np.ndarray:
    picture, draw = pen(ground(dice, (34, 56, 34), 12))
    crowns(
        dice, draw, dice.between(300, 380), dice.near(dice.pick((LEAVES, LEAVES, (70, 88, 40))), 14)
    )
    return np.asarray(picture)


def island(dice: Dice) -> np.ndarray:
    inside = _blob(dice, dice.between(26, 40))
    shallow = blend(sea(dice), (92, 168, 172), np.clip((inside + 14) * 14, 0, 200))
    shore = blend(shallow, ground(dice, SAND, 12), inside > 0)
    picture, draw = pen(meadow(dice))
    crowns(dice, draw, 70)
    return blend(shore, np.asarray(picture), inside > 7)


def lake(dice: Dice) -> np.ndarray:
    inside = _blob(dice, dice.between(30, 44))
    picture, draw = pen(meadow(dice))
    crowns(dice, draw, dice.between(20, 120))
    shore = blend(np.asarray(picture), dice.near((140, 132, 96), 14), inside > -3)
    return blend(shore, sea(dice), inside > 0)


def mountains(dice: Dice) -> np.ndarray:
    height = 255 - np.abs(noise(dice, 3, 4) * 2 - 255)
    fall = (height - np.roll(height, (3, 3), (0, 1))) * 5
    rock = ramp(height + fall // 2, (52, 56, 60), dice.near((112, 104, 98), 12), (150, 146, 142))
    snow = np.clip((height - dice.between(90, 150)) * 5 + fall * 2, 0, 255)
    lit = ramp(170 + fall * 2, (150, 172, 205), (238, 242, 250), (255, 255, 255))
    return blend(rock, lit, snow)


def river(dice: Dice) -> np.ndarray:
    across, _ = _bend(dice, dice.between(14, 30))
    half = dice.between(7, 15)
    picture, draw = pen(meadow(dice))
    crowns(dice, draw, dice.between(20, 140))
    bank = blend(np.asarray(picture), dice.near((160, 148, 110), 16), np.abs(across) < half + 3)
    return blend(bank, sea(dice), np.abs(across) < half)
