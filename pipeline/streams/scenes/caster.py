"""Rays from a camera to the nearest solids, and from there to the light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.streams.scenes.solids import Solid, Vector, add, cross, dot, unit

FINE = 128  # rays along an edge: two for each pixel
CLEAR = 2e-3  # metres that a shadow's ray starts above its surface


@dataclass(frozen=True)
class Camera:
    """Where it stands, what it looks at, and its focal length in half image sides."""

    position: Vector
    target: Vector
    focal: float
    roll: float = 0.0

    def frame(self) -> tuple[Vector, Vector, Vector]:
        """Unit vectors to the right, up, and back to the viewer."""
        back = unit(add(self.position, self.target, -1.0))
        right = unit(cross((self.roll, 1.0, 0.0), back))
        return right, cross(back, right), back

    def rays(self) -> Vector:
        """Unit directions through the middles of FINE x FINE cells, each (FINE^2,)."""
        steps = (np.arange(FINE) + 0.5) * (2.0 / FINE) - 1.0
        x, y = np.tile(steps, FINE), np.repeat(-steps, FINE)
        right, up, back = self.frame()
        ahead = (-self.focal * back[0], -self.focal * back[1], -self.focal * back[2])
        return unit(add(add(ahead, right, x), up, y))


@dataclass(frozen=True)
class Seen:
    """What each ray met: distance (inf = sky), index of the solid (-1 = sky), unit normal."""

    rays: Vector
    distance: np.ndarray
    solid: np.ndarray
    normal: Vector


def look(camera: Camera, solids: list[Solid]) -> Seen:
    """The nearest solid on each ray of a camera."""
    rays = camera.rays()
    distance = np.full(FINE * FINE, np.inf)
    solid = np.full(FINE * FINE, -1)
    normal = tuple(np.zeros(FINE * FINE) for _ in range(3))
    for index, candidate in enumerate(solids):
        near = _near(candidate, camera.position, rays)
        t, n = candidate.meet(camera.position, _take(rays, near))
        closer = t < distance[near]
        hit = near[closer]
        distance[hit], solid[hit] = t[closer], index
        for axis in range(3):
            normal[axis][hit] = n[axis][closer]
    return Seen(rays, distance, solid, normal)  # type: ignore[arg-type]


def lit(camera: Camera, seen: Seen, solids: list[Solid], light: Vector) -> np.ndarray:
    """Whether the light reaches what each ray met, (FINE^2,) bool."""
    hit = np.flatnonzero((seen.solid >= 0) & (dot(seen.normal, light) > 0.0))
    start = add(camera.position, _take(seen.rays, hit), seen.distance[hit])
    start = add(start, _take(seen.normal, hit), CLEAR)
    reached = np.ones(len(hit), bool)
    for candidate in solids:
        if candidate.shape == "plane":
            continue  # walls would darken the whole room
        near = _near(candidate, start, light)
        near = near[reached[near]]
        t, _ = candidate.meet(_take(start, near), light)
        reached[near] = ~np.isfinite(t)
    out = np.zeros(len(seen.solid), bool)
    out[hit] = reached
    return out


def _near(solid: Solid, origin: Vector, rays: Vector) -> np.ndarray:
    """Indices of the rays that pass the ball around a solid, ahead of their origin."""
    if not np.isfinite(solid.reach):
        return np.arange(len(rays[0]))
    way = add(solid.centre, origin, -1.0)
    along = dot(way, rays)
    gap = dot(way, way) - along * along
    return np.flatnonzero((gap <= solid.reach * solid.reach) & (along > -solid.reach))


def _take(v: Vector, index: np.ndarray) -> Vector:
    return v[0][index], v[1][index], v[2][index]
