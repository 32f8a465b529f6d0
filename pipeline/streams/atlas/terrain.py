"""Terrain: sixteen kinds of land and water seen from the air, in any season and direction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from archipelago.pipeline.streams.atlas import land, works
from archipelago.pipeline.streams.atlas.canvas import Dice, blend, camera, finish, noise
from archipelago.pipeline.streams.atlas.scene import Request, Scene

PLACES: dict[str, Callable[[Dice], np.ndarray]] = {
    "beach": land.beach,
    "desert": land.desert,
    "fields": works.farmland,
    "forest": land.forest,
    "lake": land.lake,
    "oil tanks": works.tanks,
    "parking lot": works.parking,
    "port": works.harbour,
    "railroad": works.railway,
    "roundabout": works.roundabout,
    "runway": works.runway,
    "snowy mountains": land.mountains,
    "soccer field": works.football,
    "tropical island": land.island,
    "village": works.residential,
    "winding river": land.river,
}


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One aerial view, any side up, sometimes under thin cloud."""
    view = tuple(PLACES.values())[request.label](dice)
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(view, dice.below(4))))
    view = np.asarray(camera(dice, picture, zoom=(116, 145), shift=4, tilt=40))
    if dice.chance(25):
        view = blend(view, (240, 242, 245), np.clip(noise(dice, 2, 3) - 150, 0, 110))
    return finish(dice, view, grain=10, light=30)


SCENE = Scene(
    name="terrain",
    classes=tuple(PLACES),
    templates=("{} seen from above.", "a satellite image of {}.", "an aerial photo of {}."),
    paint=paint,
)
