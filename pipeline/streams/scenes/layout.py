"""A whole scene: a place, a camera, a light, and things that do not stand in each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import ONE, TURN, Dice, cosine, sine
from archipelago.pipeline.streams.scenes.caster import Camera
from archipelago.pipeline.streams.scenes.solids import Paint, Solid, Vector, unit
from archipelago.pipeline.streams.scenes.things import (
    BUILDERS,
    colour_of,
    metres,
    person,
    placed,
    width,
)

GROUND, WALL, SIDE, FIRST = 1, 2, 3, 4  # numbers of things; 0 is the sky
TRIES = 12  # places tried for a thing before it is left out
CELLS = 32  # side of the table of a surface's grain


@dataclass(frozen=True)
class Scene:
    """Everything that an image is made of."""

    camera: Camera
    solids: list[Solid]
    light: Vector
    ambient: float
    sky: tuple[Vector, Vector]
    exposure: float


def compose(dice: Dice) -> Scene:
    """A scene thrown by the dice."""
    height = metres(dice, 90, 210)
    focal = dice.between(150, 230) / 100
    ahead = metres(dice, 220, 400)
    target = (metres(dice, -60, 60), metres(dice, 35, 90), -ahead)
    camera = Camera((0.0, height, 0.0), target, focal, dice.between(-6, 6) / 100)
    solids = _place(dice)
    taken: list[tuple[float, float, float]] = []
    number = FIRST
    people = dice.pick((0, 1, 1, 1, 2, 2, 3))
    builders = [person] * people + [dice.pick(BUILDERS[1:]) for _ in range(dice.between(2, 5))]
    for build in builders:
        pieces = build(dice)
        angle, reach = dice.below(TURN), width(pieces)
        for _ in range(TRIES):
            depth = metres(dice, 190 + int(60 * reach), 500)
            x = metres(dice, -100, 100) * 0.85 * depth / focal + target[0] * depth / ahead
            if all((x - a) ** 2 + (depth - b) ** 2 > (reach + r) ** 2 for a, b, r in taken):
                solids += placed(pieces, number, angle, x, -depth)
                taken.append((x, depth, reach))
                number += 1
                break
    return Scene(
        camera,
        solids,
        _light(dice),
        dice.between(28, 58) / 100,
        _sky(dice),
        dice.between(95, 150) / 100,
    )


def _light(dice: Dice) -> Vector:
    """Towards the light: above, and never from behind the walls."""
    angle = dice.between(-230, 230)
    aside, front = int(sine(angle)) / ONE, int(cosine(angle)) / ONE
    return unit((aside, dice.between(50, 180) / 100, front))


def _sky(dice: Dice) -> tuple[Vector, Vector]:
    """Colours at the horizon and above."""
    top = dice.pick(((96, 150, 220), (150, 190, 230), (200, 205, 210), (230, 170, 130)))
    return colour_of(dice.near((225, 228, 230), 20)), colour_of(dice.near(top, 20))


def _surface(dice: Dice) -> Paint:
    """A large surface: dull, of a pattern, with grain."""
    rgb = dice.hue((0, 110), (80, 235))
    second = dice.near(rgb, 50)
    pattern = dice.pick(("plain", "plain", "checker", "stripes"))
    grain = dice.bytes(CELLS, CELLS).astype(np.float64) / 255.0
    return Paint(colour_of(rgb), colour_of(second), pattern, metres(dice, 25, 120), 0.0, grain)


def _place(dice: Dice) -> list[Solid]:
    """The ground, and mostly a wall behind and perhaps one at a side."""
    flat = (1.0, 1.0, 1.0)
    solids = [Solid("plane", (0.0, 0.0, 0.0), flat, _surface(dice), GROUND, 0)]
    back: tuple[Vector, Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    if dice.chance(65):
        far = -metres(dice, 640, 950)
        solids.append(Solid("plane", (0.0, 0.0, far), flat, _surface(dice), WALL, 0, 0, back))
        if dice.chance(45):
            side = dice.pick((-1, 1))
            axes = ((0.0, 0.0, float(side)), (-float(side), 0.0, 0.0), (0.0, 1.0, 0.0))
            middle = (side * metres(dice, 260, 420), 0.0, 0.0)
            solids.append(Solid("plane", middle, flat, _surface(dice), SIDE, 0, 0, axes))
    return solids
