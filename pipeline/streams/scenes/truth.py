"""The five targets of a scene, exact because the scene is known.

A pixel belongs to the nearest of what its four rays met.
"""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import SIZE
from archipelago.pipeline.streams.scenes.caster import FINE, Seen
from archipelago.pipeline.streams.scenes.layout import FIRST, Scene
from archipelago.pipeline.streams.scenes.solids import dot
from archipelago.pipeline.streams.targets import SCALE

STEP = 0.1  # metres between two surfaces of one thing that make an edge
CALM = 24  # pixels; nothing smaller is salient
RIVAL = 0.5  # share of the most salient thing's score that makes another one salient too


def truth(scene: Scene, seen: Seen, image: np.ndarray) -> dict[str, np.ndarray]:
    """The targets by task as `streams.targets` stores them, (SIZE, SIZE[, 3])."""
    pick = _nearest(seen.distance)
    solid = seen.solid[pick].reshape(SIZE, SIZE)
    label, part, thing = (
        np.array([getattr(s, name) for s in scene.solids] + [0], np.uint8)[solid]
        for name in ("label", "part", "thing")
    )
    distance = seen.distance[pick].reshape(SIZE, SIZE)
    return {
        "semseg": label,
        "parts": part,
        "saliency": _salient(thing, label, image),
        "normals": _normals(scene, seen, pick),
        "edges": _edges(thing, solid, distance),
    }


def _nearest(distance: np.ndarray) -> np.ndarray:
    """Index of the ray of each pixel that met something first, (SIZE^2,)."""
    fine = FINE // SIZE
    rays = np.arange(FINE * FINE).reshape(SIZE, fine, SIZE, fine)
    index = rays.transpose(0, 2, 1, 3).reshape(SIZE * SIZE, fine * fine)
    return index[np.arange(SIZE * SIZE), distance[index].argmin(axis=1)]


def _normals(scene: Scene, seen: Seen, pick: np.ndarray) -> np.ndarray:
    """In the camera's frame: x right, y up, z to the viewer; the sky has none."""
    normal = tuple(axis[pick] for axis in seen.normal)
    turned = np.stack([dot(normal, axis) for axis in scene.camera.frame()], axis=-1)
    return np.rint(turned * SCALE).astype(np.int8).reshape(SIZE, SIZE, 3)


def _salient(thing: np.ndarray, label: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The thing of the highest score, and its rivals: size, middle, colour, and people first."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] * 2 - SIZE + 1
    pixels = image.astype(np.int64)
    scores: dict[int, float] = {}
    for number in np.unique(thing[thing >= FIRST]).tolist():
        here = thing == number
        area = int(here.sum())
        if area < CALM:
            continue
        off = (int(x[here].sum()) ** 2 + int(y[here].sum()) ** 2) / (area * SIZE) ** 2
        rest = pixels[~here].sum(axis=0) / (SIZE * SIZE - area)
        contrast = float(np.abs(pixels[here].sum(axis=0) / area - rest).sum()) / 255.0
        person = 2.0 if int(label[here][0]) == 1 else 1.0
        scores[number] = person * min(area, 500) * (0.3 + contrast) / (1.0 + 2.0 * off)
    best = max(scores.values(), default=0.0)
    chosen = [number for number, score in scores.items() if score >= RIVAL * best]
    return np.isin(thing, chosen).astype(np.uint8)


def _edges(thing: np.ndarray, solid: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Where one thing ends before another, or a limb before a body; on the nearer side."""
    edges = np.zeros((SIZE, SIZE), np.uint8)
    for axis in (0, 1):
        a, b = (slice(0, -1), slice(1, None))
        one = (a, slice(None)) if axis == 0 else (slice(None), a)
        two = (b, slice(None)) if axis == 0 else (slice(None), b)
        far = np.maximum(distance[one], distance[two])
        near = np.minimum(distance[one], distance[two])
        jump = (solid[one] != solid[two]) & (far > near + STEP)
        edge = (thing[one] != thing[two]) | jump
        first = distance[one] <= distance[two]
        edges[one] |= edge & first
        edges[two] |= edge & ~first
    return edges
