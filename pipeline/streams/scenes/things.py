"""Things that stand in a scene, each built of solids: people of limbs, dogs, tables, trees ...

Lengths are metres; x points right, y up, z to the viewer. Every thing is built around the origin,
standing on y = 0, and then turned and carried to its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import ONE, TURN, Colour, Dice, cosine, sine
from archipelago.pipeline.streams.scenes.solids import Paint, Solid, Vector, add, cross, dot, unit

CLASSES = ("background", "person", "dog", "ball", "crate", "barrel", "table", "tree")
PARTS = ("none", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, 7)
SKIN: tuple[Colour, ...] = ((236, 200, 174), (205, 152, 118), (150, 98, 66), (96, 62, 44))
FUR: tuple[Colour, ...] = ((150, 104, 62), (60, 48, 40), (214, 190, 150), (128, 124, 120))
WOOD: tuple[Colour, ...] = ((158, 116, 70), (112, 76, 46), (196, 160, 108), (90, 66, 50))
LEAVES: tuple[Colour, ...] = ((64, 108, 50), (96, 130, 60), (44, 84, 56), (170, 130, 50))
CLOTH = ("plain", "plain", "stripes", "checker")


def metres(dice: Dice, low: int, high: int) -> float:
    """A length between so many centimetres."""
    return dice.between(low, high) / 100.0


def colour_of(rgb: Colour) -> Vector:
    """0..255 to 0..1."""
    return rgb[0] / 255.0, rgb[1] / 255.0, rgb[2] / 255.0


def cover(dice: Dice, rgb: Colour, patterns: tuple[str, ...] = ("plain",), gloss: int = 0) -> Paint:
    """Paint of one colour, or in a pattern of it and another; gloss in percent."""
    second = dice.hue((40, 230), (60, 255))
    scale = metres(dice, 6, 24)
    return Paint(
        colour_of(rgb), colour_of(second), dice.pick(patterns), scale, dice.between(0, gloss) / 100
    )


def limb(a: Vector, b: Vector, radius: float, paint: Paint, label: int, part: int = 0) -> Solid:
    """A capsule between two points."""
    return _between("capsule", a, b, radius, paint, label, part)


def rod(a: Vector, b: Vector, radius: float, paint: Paint, label: int) -> Solid:
    """A cylinder between two points."""
    return _between("cylinder", a, b, radius, paint, label, 0)


def _between(
    shape: str, a: Vector, b: Vector, radius: float, paint: Paint, label: int, part: int
) -> Solid:
    way = add(b, a, -1.0)
    y = unit(way)
    x = unit(cross(y, (0.0, 0.0, 1.0) if abs(y[2]) < 0.9 else (1.0, 0.0, 0.0)))
    half = (radius, float(np.sqrt(dot(way, way))) / 2.0, radius)
    middle = add(a, way, 0.5)
    return Solid(shape, middle, half, paint, 0, label, part, (x, y, cross(x, y)))


def _swung(forward: int, aside: int) -> Vector:
    """A limb hanging down, swung forward (z) and aside (x); angles in steps of a full turn."""
    f, s = int(sine(forward)) / ONE, int(sine(aside)) / ONE
    cf, cs = int(cosine(forward)) / ONE, int(cosine(aside)) / ONE
    return s, -cf * cs, f * cs


def person(dice: Dice) -> list[Solid]:
    """Six parts: head, torso, upper and lower arms, upper and lower legs; five poses."""
    tall = metres(dice, 105, 190)
    pose = dice.pick(("stand", "walk", "sit", "wave", "crouch"))
    skin = cover(dice, dice.pick(SKIN))
    shirt = cover(dice, dice.hue((30, 230), (60, 250)), CLOTH)
    trousers = cover(dice, dice.hue((10, 200), (30, 220)))
    sleeve = shirt if dice.chance(50) else skin
    hair = cover(dice, dice.pick(FUR))

    def at(x: float, y: float, z: float = 0.0) -> Vector:
        return x * tall, y * tall, z * tall

    lean = _swung(TURN // 2 + dice.between(-50, 90 if pose == "crouch" else 30), 0)
    hips = at(0.0, 0.53)
    chest = add(hips, lean, 0.24 * tall)
    head = add(chest, lean, 0.175 * tall)
    girth = dice.between(90, 118) / 1000 * tall
    out = [
        limb(hips, chest, girth, shirt, 1, TORSO),
        limb(
            add(hips, (1.0, 0.0, 0.0), -0.05 * tall),
            add(hips, (1.0, 0.0, 0.0), 0.05 * tall),
            0.085 * tall,
            trousers,
            1,
            TORSO,
        ),
        limb(head, add(head, (0.0, 0.025 * tall, 0.0)), 0.068 * tall, skin, 1, HEAD),
        limb(
            add(head, (0.0, 0.03, -0.02), tall),
            add(head, (0.0, 0.045, -0.012), tall),
            0.062 * tall,
            hair,
            1,
            HEAD,
        ),
    ]
    for side in (-1, 1):
        aside = side * dice.between(20, 90)
        if pose == "wave" and (side == 1 or dice.chance(50)):
            forward, aside, bend = dice.between(380, 560), side * dice.between(20, 120), 0
        else:
            forward, bend = dice.between(-110, 150), dice.between(0, 260)
        shoulder = add(chest, at(side * 0.115, 0.02))
        elbow = add(shoulder, _swung(forward, aside), 0.17 * tall)
        hand = add(elbow, _swung(forward + bend, aside // 2), 0.18 * tall)
        out.append(limb(shoulder, elbow, 0.037 * tall, shirt, 1, UPPER_ARM))
        out.append(limb(elbow, hand, 0.030 * tall, sleeve, 1, LOWER_ARM))
        swing = {"sit": 230, "crouch": 200, "walk": side * dice.between(40, 90)}.get(pose, 0)
        swing += dice.between(-15, 15)
        bent = {"sit": -230, "crouch": -260}.get(pose, -dice.between(0, 60))
        joint = add(hips, at(side * 0.06, 0.0))
        knee = add(joint, _swung(swing, side * dice.between(0, 25)), 0.24 * tall)
        ankle = add(knee, _swung(swing + bent, 0), 0.24 * tall)
        out.append(limb(joint, knee, 0.054 * tall, trousers, 1, UPPER_LEG))
        out.append(limb(knee, ankle, 0.040 * tall, trousers, 1, LOWER_LEG))
        out.append(limb(ankle, add(ankle, at(0.0, 0.0, 0.07)), 0.030 * tall, hair, 1, LOWER_LEG))
    return out


def dog(dice: Dice) -> list[Solid]:
    """A body like a limb on four legs: what is no part of a person."""
    size = metres(dice, 55, 110)
    fur = cover(dice, dice.pick(FUR), ("plain", "checker"))
    y, long = 0.48 * size, 0.36 * size
    out = [limb((0.0, y, -long), (0.0, y, long), 0.16 * size, fur, 2)]
    for x in (-0.1, 0.1):
        for z in (-0.34, 0.34):
            foot = (x * size, 0.03 * size, (z + dice.between(-12, 12) / 100) * size)
            out.append(limb((x * size, y, z * size), foot, 0.045 * size, fur, 2))
    head = (0.0, 0.74 * size, 0.46 * size)
    out.append(limb((0.0, y, long), head, 0.09 * size, fur, 2))
    out.append(limb(head, add(head, (0.0, -0.05, 0.14), size), 0.1 * size, fur, 2))
    tail = (0.0, (0.5 + dice.between(0, 30) / 100) * size, -0.66 * size)
    return [*out, limb((0.0, y, -long), tail, 0.03 * size, fur, 2)]


def ball(dice: Dice) -> list[Solid]:
    """A ball of any colour."""
    r = metres(dice, 12, 42)
    paint = cover(dice, dice.hue((60, 255), (80, 255)), ("plain", "stripes", "checker"), 60)
    return [Solid("ball", (0.0, r, 0.0), (r, r, r), paint, 0, 3)]


def crate(dice: Dice) -> list[Solid]:
    """A box, sometimes with a smaller one on top."""
    out: list[Solid] = []
    base = 0.0
    for _ in range(1 + dice.chance(30)):
        x, y, z = (metres(dice, 14, 45) for _ in range(3))
        rgb = dice.pick(WOOD) if dice.chance(50) else dice.hue((30, 220), (60, 240))
        paint = cover(dice, rgb, ("plain", "stripes", "checker"))
        box = Solid("box", (0.0, base + y, 0.0), (x, y, z), paint, 0, 4)
        out.append(turned(box, dice.below(TURN)) if out else box)
        base += 2 * y
    return out


def barrel(dice: Dice) -> list[Solid]:
    """A drum, standing or lying."""
    r, h = metres(dice, 14, 34), metres(dice, 40, 100)
    paint = cover(dice, dice.hue((40, 220), (60, 230)), ("plain", "stripes"), 50)
    if dice.chance(70):
        return [rod((0.0, 0.0, 0.0), (0.0, h, 0.0), r, paint, 5)]
    return [rod((-h / 2, r, 0.0), (h / 2, r, 0.0), r, paint, 5)]


def table(dice: Dice) -> list[Solid]:
    """A top on four legs."""
    x, z, h = metres(dice, 35, 80), metres(dice, 25, 50), metres(dice, 45, 85)
    paint = cover(dice, dice.pick(WOOD), ("plain", "stripes"))
    top = Solid("box", (0.0, h, 0.0), (x, 0.03, z), paint, 0, 6)
    legs = [
        rod(
            (a * (x - 0.05), 0.0, b * (z - 0.05)),
            (a * (x - 0.05), h, b * (z - 0.05)),
            0.03,
            paint,
            6,
        )
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    return [top, *legs]


def tree(dice: Dice) -> list[Solid]:
    """A trunk and a crown of balls."""
    h, r = metres(dice, 60, 160), metres(dice, 25, 55)
    leaves = cover(dice, dice.pick(LEAVES), ("plain", "checker"))
    out = [rod((0.0, 0.0, 0.0), (0.0, h, 0.0), 0.12 * r + 0.03, cover(dice, dice.pick(WOOD)), 7)]
    for _ in range(dice.between(1, 3)):
        size = r * dice.between(70, 110) / 100
        x, z = (r * dice.between(-50, 50) / 100 for _ in range(2))
        middle = (x, h + r * dice.between(0, 90) / 100, z)
        out.append(Solid("ball", middle, (size, size, size), leaves, 0, 7))
    return out


BUILDERS: tuple[Callable[[Dice], list[Solid]], ...] = (
    person,
    dog,
    ball,
    crate,
    barrel,
    table,
    tree,
)


def turned(solid: Solid, angle: int) -> Solid:
    """The solid turned about the vertical through the origin."""
    c, s = int(cosine(angle)) / ONE, int(sine(angle)) / ONE

    def turn(v: Vector) -> Vector:
        return c * v[0] + s * v[2], v[1], c * v[2] - s * v[0]

    x, y, z = solid.axes
    return replace(solid, centre=turn(solid.centre), axes=(turn(x), turn(y), turn(z)))


def placed(solids: list[Solid], thing: int, angle: int, x: float, z: float) -> list[Solid]:
    """A built thing turned, standing on the ground at (x, z), with its number."""
    low = min(_lowest(solid) for solid in solids)
    out = []
    for solid in solids:
        solid = turned(solid, angle)
        out.append(replace(solid, centre=add(solid.centre, (x, -low, z)), thing=thing))
    return out


def width(solids: list[Solid]) -> float:
    """Radius of the circle on the ground that holds a thing built around the origin."""
    return max(float(np.sqrt(s.centre[0] ** 2 + s.centre[2] ** 2)) + _aside(s) for s in solids)


def _lowest(s: Solid) -> float:
    if s.shape == "box":
        return float(s.centre[1] - s.half[1])
    if s.shape == "ball":
        return float(s.centre[1] - s.half[0])
    rise = abs(s.axes[1][1])
    round_ = s.half[0] if s.shape == "capsule" else s.half[0] * float(np.sqrt(1.0 - rise * rise))
    return float(s.centre[1] - rise * s.half[1] - round_)


def _aside(s: Solid) -> float:
    if s.shape == "box":
        return float(np.sqrt(s.half[0] ** 2 + s.half[2] ** 2))
    if s.shape == "ball":
        return float(s.half[0])
    flat = float(np.sqrt(max(0.0, 1.0 - s.axes[1][1] ** 2)))
    return float(s.half[0]) + flat * float(s.half[1])
