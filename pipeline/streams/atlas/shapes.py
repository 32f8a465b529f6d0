"""Shapes: one plain figure in a vivid colour, turned and scaled, on a cluttered ground."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    TURN,
    Dice,
    blend,
    camera,
    contrasting,
    finish,
    noise,
    polar,
    ramp,
)
from archipelago.pipeline.streams.atlas.scene import Request, Scene

BIG = 2 * CANVAS  # figures are drawn at twice the canvas
MIDDLE = BIG // 2
RADIUS = 88

Points = list[tuple[int, int]]


def _ring(corners: int, radii: tuple[int, ...] = (RADIUS,), start: int = -TURN // 4) -> Points:
    """Corners on circles whose radii take turns, the first one on top."""
    steps = corners * len(radii)
    return [
        (MIDDLE + x, MIDDLE + y)
        for k in range(steps)
        for x, y in [polar(radii[k % len(radii)], start + k * TURN // steps)]
    ]


def _scaled(points: list[tuple[int, int]]) -> Points:
    """Points given in percent of the radius, as pixels."""
    return [(MIDDLE + x * RADIUS // 100, MIDDLE + y * RADIUS // 100) for x, y in points]


def _disc(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, fill: int = 255) -> None:
    x, y, r = MIDDLE + x * RADIUS // 100, MIDDLE + y * RADIUS // 100, radius * RADIUS // 100
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def circle(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, 0, 0, 92)


def ring(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, 0, 0, 95)
    _disc(draw, 0, 0, 55, 0)


def crescent(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, -5, 0, 95)
    _disc(draw, 40, -8, 80, 0)


def semicircle(draw: ImageDraw.ImageDraw) -> None:
    x, y, r = MIDDLE, MIDDLE + RADIUS * 45 // 100, RADIUS
    draw.pieslice((x - r, y - r, x + r, y + r), 180, 360, fill=255)


def cloud(draw: ImageDraw.ImageDraw) -> None:
    for x, y, r in ((-55, 20, 40), (-18, -15, 50), (38, -2, 42), (62, 28, 34)):
        _disc(draw, x, y, r)
    draw.polygon(_scaled([(-60, 20), (65, 20), (62, 62), (-55, 60)]), fill=255)


def heart(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, -44, -30, 50)
    _disc(draw, 44, -30, 50)
    draw.polygon(_scaled([(-86, -3), (-44, -44), (0, -30), (44, -44), (86, -3), (0, 92)]), fill=255)


def flower(draw: ImageDraw.ImageDraw) -> None:
    for k in range(6):
        _disc(draw, *polar(58, k * TURN // 6), 36)
    _disc(draw, 0, 0, 50)
    _disc(draw, 0, 0, 22, 0)


def drop(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, 0, 32, 62)
    draw.polygon(_scaled([(-59, 14), (-20, -50), (0, -98), (20, -50), (59, 14)]), fill=255)


POLYGONS: dict[str, Points] = {
    "arrow": _scaled([(-95, -22), (15, -22), (15, -62), (98, 0), (15, 62), (15, 22), (-95, 22)]),
    "cross": _scaled(
        [
            *((-30, -95), (30, -95), (30, -30), (95, -30), (95, 30), (30, 30)),
            *((30, 95), (-30, 95), (-30, 30), (-95, 30), (-95, -30), (-30, -30)),
        ]
    ),
    "hexagon": _ring(6),
    "lightning bolt": _scaled(
        [(15, -100), (-55, 15), (-8, 15), (-25, 100), (58, -22), (8, -22), (42, -100)]
    ),
    "square": _ring(4, start=TURN // 8),
    "star": _ring(5, (RADIUS + 6, 40)),
    "triangle": _ring(3),
}
DRAWN = {
    "circle": circle,
    "cloud": cloud,
    "crescent": crescent,
    "drop": drop,
    "flower": flower,
    "heart": heart,
    "ring": ring,
    "semicircle": semicircle,
}
CLASSES = tuple(sorted((*POLYGONS, *DRAWN)))


def figure(name: str) -> Image.Image:
    """The upright shape as a mask, mode L, BIG pixels wide."""
    mask = Image.new("L", (BIG, BIG))
    draw = ImageDraw.Draw(mask)
    if name in POLYGONS:
        draw.polygon(POLYGONS[name], fill=255)
    else:
        DRAWN[name](draw)
    return mask


def clutter(dice: Dice) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A ground of soft clouds, strokes and crumbs around one mean colour, and that colour."""
    base = dice.hue((0, 150), (50, 240))
    ground = ramp(noise(dice, dice.between(2, 6)), dice.near(base, 24), base, dice.near(base, 24))
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    for _ in range(dice.between(4, 10)):
        x, y = dice.below(CANVAS), dice.below(CANVAS)
        dx, dy = polar(dice.between(8, 60), dice.below(TURN))
        draw.line((x, y, x + dx, y + dy), fill=dice.near(base, 34), width=dice.between(1, 5))
    for _ in range(dice.between(3, 8)):
        x, y, r = dice.below(CANVAS), dice.below(CANVAS), dice.between(2, 9)
        draw.rectangle((x - r, y - r, x + r, y + dice.between(-r, r) + r), fill=dice.near(base, 34))
    return np.asarray(image), base


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One shape on clutter, with a slight shadow."""
    ground, base = clutter(dice)
    colour = contrasting(dice, base, 100)
    seen = camera(
        dice, figure(CLASSES[request.label]), turn=36, zoom=(90, 128), shift=14, tilt=80
    ).reduce(2)
    mask = np.asarray(seen)
    shadow = np.roll(mask, (dice.between(2, 5), dice.between(-4, 4)), (0, 1)) // 3
    scene = blend(ground, (0, 0, 0), shadow)
    face = ramp(noise(dice, 2, 2), dice.near(colour, 25), dice.near(colour, 25))
    return finish(dice, blend(scene, face, mask), grain=10)


SCENE = Scene(
    name="shapes",
    classes=CLASSES,
    templates=("a photo of a {}.", "a coloured {}.", "a {}."),
    paint=paint,
)
