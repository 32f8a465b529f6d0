"""Flags: twenty-four national flags, waving on a pole before sky, wall or hills, in any light."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    ONE,
    TURN,
    Dice,
    blend,
    camera,
    finish,
    flat,
    grid,
    noise,
    polar,
    ramp,
    shade,
    sine,
)
from archipelago.pipeline.streams.atlas.scene import Request, Scene

WIDE, TALL = 180, 120  # the cloth as drawn, upright and flat

RED, WHITE, BLUE, GREEN = (206, 17, 38), (250, 250, 250), (0, 47, 135), (0, 140, 69)
YELLOW, BLACK, SKY, ORANGE = (255, 209, 0), (20, 20, 20), (117, 178, 221), (255, 136, 48)

Colour = tuple[int, int, int]
Cloth = ImageDraw.ImageDraw


def _upright(draw: Cloth, *colours: Colour) -> None:
    for k, colour in enumerate(colours):
        edge = WIDE * k // len(colours)
        draw.rectangle((edge, 0, WIDE * (k + 1) // len(colours) - 1, TALL), fill=colour)


def _level(draw: Cloth, *colours: Colour) -> None:
    for k, colour in enumerate(colours):
        edge = TALL * k // len(colours)
        draw.rectangle((0, edge, WIDE, TALL * (k + 1) // len(colours) - 1), fill=colour)


def _nordic(draw: Cloth, field: Colour, cross: Colour, inner: Colour | None = None) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=field)
    for colour, half in ((cross, 13), (inner, 6)):
        if colour is not None:
            draw.rectangle((64 - half, 0, 64 + half, TALL), fill=colour)
            draw.rectangle((0, 60 - half, WIDE, 60 + half), fill=colour)


def _disc(draw: Cloth, x: int, y: int, radius: int, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _star(
    draw: Cloth, x: int, y: int, radius: int, colour: Colour, start: int = -TURN // 4
) -> None:
    radii = (radius, radius * 39 // 100)
    points = [polar(radii[k % 2], start + k * TURN // 10) for k in range(10)]
    draw.polygon([(x + a, y + b) for a, b in points], fill=colour)


def argentina(draw: Cloth) -> None:
    _level(draw, SKY, WHITE, SKY)
    for k in range(16):
        x, y = polar(18, k * TURN // 16)
        draw.line((90, 60, 90 + x, 60 + y), fill=(246, 180, 14), width=2)
    _disc(draw, 90, 60, 11, (246, 180, 14))


def brazil(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=(0, 151, 57))
    draw.polygon([(12, 60), (90, 10), (168, 60), (90, 110)], fill=(254, 221, 0))
    _disc(draw, 90, 60, 29, (1, 33, 105))
    draw.arc((45, 52, 125, 130), 215, 310, fill=WHITE, width=5)


def canada(draw: Cloth) -> None:
    _upright(draw, RED, WHITE, WHITE, RED)
    half = [(0, -42), (8, -26), (18, -31), (14, -6), (27, -18), (30, -10), (42, -12)]
    half += [(37, 3), (42, 8), (22, 23), (24, 30), (4, 27), (3, 44)]
    points = half + [(-x, y) for x, y in reversed(half)]
    draw.polygon([(90 + x, 59 + y) for x, y in points], fill=RED)


def chile(draw: Cloth) -> None:
    _level(draw, WHITE, RED)
    draw.rectangle((0, 0, 60, 59), fill=(0, 57, 166))
    _star(draw, 30, 30, 19, WHITE)


def china(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=(222, 41, 16))
    _star(draw, 32, 32, 21, (255, 222, 0))
    for x, y in ((62, 12), (74, 25), (74, 43), (62, 56)):
        _star(draw, x, y, 8, (255, 222, 0), TURN // 9)


def czechia(draw: Cloth) -> None:
    _level(draw, WHITE, (215, 20, 26))
    draw.polygon([(0, 0), (88, 60), (0, 120)], fill=(17, 69, 126))


def greece(draw: Cloth) -> None:
    blue = (13, 94, 175)
    _level(draw, *(blue, WHITE) * 4, blue)
    draw.rectangle((0, 0, 66, 66), fill=blue)
    draw.rectangle((26, 0, 39, 66), fill=WHITE)
    draw.rectangle((0, 26, 66, 39), fill=WHITE)


def jamaica(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=(0, 119, 73))
    for side in ([(0, 0), (90, 60), (0, 120)], [(180, 0), (90, 60), (180, 120)]):
        draw.polygon(side, fill=BLACK)
    draw.line((0, 0, WIDE, TALL), fill=(255, 184, 28), width=24)
    draw.line((0, TALL, WIDE, 0), fill=(255, 184, 28), width=24)


def japan(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=WHITE)
    _disc(draw, 90, 60, 36, (188, 0, 45))


def spain(draw: Cloth) -> None:
    _level(draw, (170, 21, 27), (241, 191, 0), (241, 191, 0), (170, 21, 27))
    draw.rectangle((45, 46, 68, 76), fill=(170, 40, 40))
    draw.rectangle((50, 50, 63, 62), fill=(230, 220, 200))
    draw.rectangle((38, 46, 42, 78), fill=(200, 200, 200))
    draw.rectangle((71, 46, 75, 78), fill=(200, 200, 200))


def switzerland(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=(218, 41, 28))
    draw.rectangle((78, 22, 102, 98), fill=WHITE)
    draw.rectangle((52, 48, 128, 72), fill=WHITE)


def turkey(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=(227, 10, 23))
    _disc(draw, 64, 60, 31, WHITE)
    _disc(draw, 72, 60, 25, (227, 10, 23))
    _star(draw, 108, 60, 16, WHITE, TURN // 2)


def united_kingdom(draw: Cloth) -> None:
    draw.rectangle((0, 0, WIDE, TALL), fill=(1, 33, 105))
    for colour, width, step in ((WHITE, 24, 0), (RED, 9, 4)):
        draw.line((0, step, WIDE, TALL + step), fill=colour, width=width)
        draw.line((0, TALL - step, WIDE, -step), fill=colour, width=width)
    for colour, half in ((WHITE, 20), (RED, 12)):
        draw.rectangle((90 - half, 0, 90 + half, TALL), fill=colour)
        draw.rectangle((0, 60 - half, WIDE, 60 + half), fill=colour)


def united_states(draw: Cloth) -> None:
    red = (179, 25, 66)
    _level(draw, *(red, WHITE) * 6, red)
    draw.rectangle((0, 0, 76, 64), fill=(10, 49, 97))
    for row in range(5):
        for column in range(6 - row % 2):
            _star(draw, 9 + 12 * column + row % 2 * 6, 8 + 12 * row, 5, WHITE)


FLAGS: dict[str, Callable[[Cloth], None]] = {
    "Argentina": argentina,
    "Belgium": lambda draw: _upright(draw, BLACK, (253, 218, 36), (239, 51, 64)),
    "Brazil": brazil,
    "Canada": canada,
    "Chile": chile,
    "China": china,
    "Czechia": czechia,
    "Denmark": lambda draw: _nordic(draw, (200, 16, 46), WHITE),
    "Finland": lambda draw: _nordic(draw, WHITE, (0, 47, 108)),
    "France": lambda draw: _upright(draw, (0, 38, 124), WHITE, (206, 17, 38)),
    "Germany": lambda draw: _level(draw, BLACK, (221, 0, 0), (255, 206, 0)),
    "Greece": greece,
    "Ireland": lambda draw: _upright(draw, (22, 155, 98), WHITE, ORANGE),
    "Italy": lambda draw: _upright(draw, GREEN, WHITE, (206, 43, 55)),
    "Jamaica": jamaica,
    "Japan": japan,
    "Norway": lambda draw: _nordic(draw, (186, 12, 47), WHITE, BLUE),
    "Spain": spain,
    "Sweden": lambda draw: _nordic(draw, (0, 106, 167), (254, 204, 2)),
    "Switzerland": switzerland,
    "Turkey": turkey,
    "Ukraine": lambda draw: _level(draw, (0, 87, 184), (255, 215, 0)),
    "United Kingdom": united_kingdom,
    "United States": united_states,
}


@cache
def cloth(name: str) -> np.ndarray:
    """The flat flag: uint8 (TALL, WIDE, 3)."""
    image = Image.new("RGB", (WIDE, TALL))
    FLAGS[name](ImageDraw.Draw(image))
    return np.asarray(image)


def backdrop(dice: Dice) -> np.ndarray:
    """Sky with clouds, a plastered wall, or dusk over hills: uint8 (CANVAS, CANVAS, 3)."""
    x, y = grid()
    kind = dice.below(3)
    if kind == 0:
        blue = dice.near((110, 160, 215), 40)
        return blend(
            ramp(y + 128, blue, (215, 230, 240)),
            (250, 250, 250),
            np.clip(noise(dice, 3, 4) - 110, 0, 200),
        )
    if kind == 1:
        wall = dice.hue((10, 90), (90, 220))
        return ramp(noise(dice, 4, 4), dice.near(wall, 12), dice.near(wall, 25))
    dusk = ramp((y + 64) * 2, dice.near((120, 130, 180), 40), dice.near((245, 200, 150), 30))
    hill = y * 12 > sine(x * dice.between(3, 7) + dice.below(TURN)) * 140 // ONE + noise(
        dice, 2
    ) + dice.between(150, 350)
    return blend(dusk, dice.near((60, 80, 55), 25), hill)


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One flag waving: the cloth follows a travelling wave that also decides its light."""
    flag = cloth(tuple(FLAGS)[request.label])
    width = dice.between(84, 112)
    height = width * dice.between(58, 70) // 100
    left, top = (
        (CANVAS - width) // 2 + dice.between(-6, 6),
        (CANVAS - height) // 2 + dice.between(-10, 10),
    )
    x, y = grid()
    u, v = x + CANVAS // 2 - left, y + CANVAS // 2 - top
    phase = u * dice.between(7, 14) + v * dice.between(-3, 3) + dice.below(TURN)
    swing = u * dice.between(3, 9) // width
    v = v - (sine(phase) * swing >> 10) - u * dice.between(-8, 12) // width
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    row, column = np.clip(v * TALL // height, 0, TALL - 1), np.clip(u * WIDE // width, 0, WIDE - 1)
    light = 240 + (sine(phase + TURN // 4) * dice.between(20, 60) >> 10)
    pole = (u >= -4) & (u < 0) & (v >= -4)
    flown = flat(dice.pick(((190, 190, 195), (90, 70, 50), (235, 235, 235))))
    flown = blend(flown, shade(flag[row, column], light), inside)
    cut = np.dstack([flown, (pole | inside).astype(np.uint8) * 255])
    seen = np.asarray(camera(dice, Image.fromarray(cut), turn=24, zoom=(92, 116), tilt=100))
    return finish(dice, blend(backdrop(dice), seen[..., :3], seen[..., 3]), grain=10, light=50)


SCENE = Scene(
    name="flags",
    classes=tuple(FLAGS),
    templates=("the flag of {}.", "a photo of the national flag of {}.", "{} flag."),
    paint=paint,
)
