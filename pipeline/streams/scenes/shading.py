"""What was seen, in colour: patterns, light, shadow, gloss, haze and a camera's grain."""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import SIZE, Dice
from archipelago.pipeline.streams.scenes.caster import FINE, Seen
from archipelago.pipeline.streams.scenes.layout import CELLS, Scene
from archipelago.pipeline.streams.scenes.solids import Paint, Vector, add, dot, unit

FINENESS = FINE // SIZE


def picture(scene: Scene, seen: Seen, lit: np.ndarray, dice: Dice) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8."""
    colour = _colours(scene, seen)
    facing = np.maximum(dot(seen.normal, scene.light), 0.0) * lit
    above = 0.5 + 0.5 * seen.normal[1]
    bright = scene.ambient * (0.6 + 0.4 * above) + (1.15 - scene.ambient) * facing
    halfway = unit(add(scene.light, seen.rays, -1.0))
    shine = np.maximum(dot(seen.normal, halfway), 0.0)
    for _ in range(4):
        shine = shine * shine  # to the 16th power, exactly rounded
    gloss = np.array([solid.paint.gloss for solid in scene.solids] + [0.0])[seen.solid] * shine
    planes = [channel * bright + gloss * lit for channel in colour]
    sky = seen.solid < 0
    height = np.clip(seen.rays[1] * 2.5, 0.0, 1.0)
    mist = np.where(sky, 1.0, np.minimum(seen.distance * 0.012, 0.3))
    out = np.empty((SIZE, SIZE, 3))
    for i, plane in enumerate(planes):
        low, high = scene.sky[0][i], scene.sky[1][i]
        behind = low + (high - low) * height
        full = np.where(sky, behind, plane * (1.0 - mist) + behind * mist) * scene.exposure
        full = np.clip(full, 0.0, 1.0).reshape(SIZE, FINENESS, SIZE, FINENESS)
        out[..., i] = full[:, 0, :, 0] + full[:, 0, :, 1] + full[:, 1, :, 0] + full[:, 1, :, 1]
    strength = dice.between(2, 14)
    specks = dice.bytes(2, SIZE, SIZE, 3).astype(np.int32)
    grain = (specks[0] + specks[1] - 255) * strength >> 8
    pixels = np.rint(out * (255.0 / FINENESS**2)).astype(np.int32) + grain
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _colours(scene: Scene, seen: Seen) -> Vector:
    """The paint at every point, three (FINE^2,) planes."""
    planes = tuple(np.zeros(len(seen.solid)) for _ in range(3))
    for index in np.unique(seen.solid[seen.solid >= 0]):
        solid = scene.solids[index]
        here = np.flatnonzero(seen.solid == index)
        rays = (seen.rays[0][here], seen.rays[1][here], seen.rays[2][here])
        point = add(scene.camera.position, rays, seen.distance[here])
        share = _pattern(solid.paint, solid.local(add(point, solid.centre, -1.0)))
        first, second = solid.paint.colour, solid.paint.second
        for i in range(3):
            planes[i][here] = first[i] + (second[i] - first[i]) * share
    return planes  # type: ignore[return-value]


def _pattern(paint: Paint, at: Vector) -> np.ndarray:
    """Share of the second colour, 0..1, at points of the solid's own frame."""
    share = np.zeros(len(at[0]))
    if paint.pattern == "checker":
        cells = sum(np.floor(axis / paint.scale + 0.5).astype(np.int64) for axis in at)
        share = (cells % 2).astype(np.float64)
    elif paint.pattern == "stripes":
        run = at[1] if paint.grain is None else at[0]
        share = (np.floor(run / paint.scale).astype(np.int64) % 2).astype(np.float64)
    if paint.grain is not None:
        share = 0.75 * share + 0.6 * (_smooth(paint.grain, at[0] * 2.0, at[2] * 2.0) - 0.3)
    return share


def _smooth(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A table of numbers read between its cells, repeated without end."""
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    a, b = u - i, v - j
    i, j = i % CELLS, j % CELLS
    k, m = (i + 1) % CELLS, (j + 1) % CELLS
    upper = table[i, j] * (1.0 - b) + table[i, m] * b
    return upper * (1.0 - a) + (table[k, j] * (1.0 - b) + table[k, m] * b) * a
