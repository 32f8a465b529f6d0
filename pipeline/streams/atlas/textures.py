"""Textures: sixteen repeating or random surfaces in any two colours, scale and direction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    ONE,
    TURN,
    Colour,
    Dice,
    blend,
    contrasting,
    finish,
    flat,
    grid,
    hsv,
    luma,
    noise,
    ramp,
    shade,
    sine,
    turned,
)
from archipelago.pipeline.streams.atlas.scene import Request, Scene

# Every maker returns a field of 0..255 (CANVAS, CANVAS): 0 is the ground colour, 255 the figure's.
Maker = Callable[[Dice], np.ndarray]


def _lattice(
    dice: Dice, low: int, high: int, slant: int = TURN
) -> tuple[np.ndarray, np.ndarray, int]:
    """Turned coordinates with a random origin, and a period, all in sixteenths of a pixel."""
    u, v = turned(dice.below(slant) - slant // 2)
    return (
        u + dice.below(4096) + 8192,
        v + dice.below(4096) + 8192,
        dice.between(low * 16, high * 16),
    )


def striped(dice: Dice) -> np.ndarray:
    u, _, period = _lattice(dice, 12, 26)
    return (u % period < period * dice.between(35, 65) // 100) * 255


def chequered(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 10, 22)
    return (u // period + v // period) % 2 * 255


def dotted(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 15, 28)
    u = u + v // period % 2 * (period // 2)
    x, y, radius = (
        u % period - period // 2,
        v % period - period // 2,
        period * dice.between(24, 36) // 100,
    )
    return (x * x + y * y < radius * radius) * 255


def gridded(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 14, 28)
    line = period * dice.between(12, 20) // 100
    return ((u % period < line) | (v % period < line)) * 255


def zigzagged(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 16, 28)
    swing = period * dice.between(80, 130) // 100
    return ((v + np.abs(u % (2 * swing) - swing)) % period < period // 2) * 255


def plaid(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 26, 44, 300)
    wide, thin = period * dice.between(30, 45) // 100, period * dice.between(5, 9) // 100
    field = 70 * (u % period < wide) + 70 * (v % period < wide)
    middle = (wide + period) // 2
    lines = (np.abs(u % period - middle) < thin) | (np.abs(v % period - middle) < thin)
    return np.where(lines, 255, field)


def honeycombed(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 17, 30)
    tall = period * 1774 // ONE  # sqrt(3)
    near = []
    for half in (0, 1):
        x = (u + half * period // 2) % period - period // 2
        y = (v + half * tall // 2) % tall - tall // 2
        near.append(np.maximum(np.abs(x), (np.abs(x) + np.abs(y) * 1774 // ONE) // 2))
    return (np.minimum(*near) > period * dice.between(39, 43) // 100) * 255


def woven(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 14, 24)
    over = (u // period + v // period) % 2 == 0
    across, along = np.where(over, v, u) % period, np.where(over, u, v) % period
    hump = sine(across * (TURN // 2) // period) * 190 // ONE
    return hump + sine(along * (TURN // 2) // period) * 65 // ONE


def scaly(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 18, 30, 160)
    best = np.zeros(u.shape, np.int32)
    for above in (2, 1, 0):  # later rows lie on top
        row = v // (period // 2) - above
        x = (u + row % 2 * (period // 2)) % period - period // 2
        y = v - row * (period // 2)
        reach = (x * x + y * y) * 255 // (period * period // 3)
        best = np.where(reach < 255, reach, best)
    return best


def brick(dice: Dice) -> np.ndarray:
    u, v, tall = _lattice(dice, 12, 20, 90)
    long, mortar = tall * dice.between(19, 24) // 10, max(24, tall // 9)
    row = v // tall
    u = u + row % 2 * (long // 2)
    tint = dice.bytes(64, 64)[row % 64, u // long % 64] // 4
    return np.where((v % tall < mortar) | (u % long < mortar), 0, 255 - tint.astype(np.int32))


def cracked(dice: Dice) -> np.ndarray:
    x, y = grid()
    x, y = x + noise(dice, 5) // 9, y + noise(dice, 5) // 9
    seeds = (dice.bytes(dice.between(14, 26), 2).astype(np.int32) - 112) * 3 // 5
    first = np.full(x.shape, 1 << 30, np.int32)
    second = first
    for a, b in seeds.tolist():
        far = (x - a) * (x - a) + (y - b) * (y - b)
        second = np.minimum(second, np.maximum(first, far))
        first = np.minimum(first, far)
    return np.where(second - first < dice.between(90, 150), 0, 205 + noise(dice, 9) // 5)


def marbled(dice: Dice) -> np.ndarray:
    u, _, period = _lattice(dice, 40, 70)
    bend = noise(dice, 3, 4) * dice.between(10, 16) + noise(dice, 2, 4) * 6
    wave = np.abs(sine((u + bend) * TURN // (2 * period)))
    return 255 - np.clip(wave * 300 // ONE, 0, 255)


def wooden(dice: Dice) -> np.ndarray:
    u, v, period = _lattice(dice, 9, 15)
    far = v + np.abs(u - 10240) * np.abs(u - 10240) // dice.between(9000, 20000)
    wave = sine((far + noise(dice, 2, 2) * 4) * TURN // period)
    fibre = np.asarray(Image.fromarray(dice.bytes(CANVAS, 4)).resize((CANVAS, CANVAS)), np.int32)
    return np.clip((wave + ONE) * 90 // ONE + fibre // 5 + noise(dice, 3) // 6, 0, 255)


def spiral(dice: Dice) -> np.ndarray:
    x, y = grid()
    x, y = x - dice.between(-14, 14), y - dice.between(-14, 14)
    angle = np.rint(np.arctan2(y, x) * (TURN / (2 * np.pi))).astype(np.int32)
    radius = np.sqrt(x * x + y * y).astype(np.int32)
    hand = 1 if dice.chance(50) else -1
    phase = radius * TURN // dice.between(16, 30) + hand * angle + dice.below(TURN)
    return (sine(phase) > 0) * 255


def bubbly(dice: Dice) -> np.ndarray:
    image = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    for _ in range(dice.between(26, 40)):
        x, y, r = dice.below(CANVAS), dice.below(CANVAS), dice.between(6, 19)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=dice.between(90, 150), outline=225, width=2)
        g = r // 2
        draw.ellipse((x - g, y - g, x - g + r // 3, y - g + r // 3), fill=255)
    return np.asarray(image, np.int32)


def sprinkled(dice: Dice) -> np.ndarray:
    image = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    for _ in range(dice.between(150, 260)):
        x, y, r = dice.below(CANVAS), dice.below(CANVAS), dice.pick((1, 1, 1, 2, 2, 3))
        draw.ellipse((x - r, y - r, x + r, y + dice.between(1, r)), fill=dice.between(130, 255))
    return np.asarray(image, np.int32)


MAKERS: dict[str, Maker] = {
    "bricks": brick,
    "bubbly": bubbly,
    "chequered": chequered,
    "cracked": cracked,
    "dotted": dotted,
    "honeycombed": honeycombed,
    "lattice": gridded,
    "marbled": marbled,
    "plaid": plaid,
    "scaly": scaly,
    "spiral": spiral,
    "sprinkled": sprinkled,
    "striped": striped,
    "wood grain": wooden,
    "woven": woven,
    "zigzagged": zigzagged,
}


def _colours(name: str, dice: Dice) -> tuple[Colour, Colour]:
    """Ground and figure: any two that contrast, but nature's own where the material has one."""
    if name == "wood grain":
        wood = hsv(dice.between(60, 170), dice.between(110, 190), dice.between(130, 225))
        return tuple(c * 50 // 100 for c in wood), wood  # type: ignore[return-value]
    if name == "bricks" and dice.chance(60):
        return dice.near((205, 198, 188), 20), hsv(
            dice.between(0, 110), dice.between(120, 190), dice.between(120, 200)
        )
    ground = dice.hue((0, 190), (40, 255))
    figure = contrasting(dice, ground, 80)
    if name == "cracked" and luma(ground) > luma(figure):
        return figure, ground
    return ground, figure


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One close-up of a texture."""
    name = tuple(MAKERS)[request.label]
    ground, figure = _colours(name, dice)
    field = MAKERS[name](dice)
    surface = shade(ramp(field, ground, figure), 225 + noise(dice, 4) * 44 // 255)
    if dice.chance(30):  # a worn patch
        surface = blend(surface, flat(ground), np.clip(noise(dice, 3) - 170, 0, 255) * 2)
    return finish(dice, surface, grain=12)


SCENE = Scene(
    name="textures",
    classes=tuple(MAKERS),
    templates=("a {} texture.", "a {} pattern.", "a photo of something {}."),
    paint=paint,
)
