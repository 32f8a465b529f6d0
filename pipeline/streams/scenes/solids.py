"""Solids that a ray can meet: planes, balls, boxes, cylinders and capsules.

Vectors are triples of arrays (or numbers) (x, y, z): rays are worked on all at once. Only
`+ - * /` and square roots, which round alike on every machine, decide what is hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Vector = tuple[Any, Any, Any]
UPRIGHT: tuple[Vector, Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
TINY = 1e-12


def dot(a: Vector, b: Vector) -> Any:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def add(a: Vector, b: Vector, times: Any = 1.0) -> Vector:
    """`a + times * b`."""
    return a[0] + times * b[0], a[1] + times * b[1], a[2] + times * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    """Outer product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def unit(a: Vector) -> Vector:
    """`a` with length 1."""
    scale = 1.0 / np.sqrt(np.maximum(dot(a, a), TINY))
    return a[0] * scale, a[1] * scale, a[2] * scale


@dataclass(frozen=True)
class Paint:
    """What a surface looks like: two colours (0..1), a pattern of a scale in metres, a gloss."""

    colour: Vector
    second: Vector
    pattern: str = "plain"
    scale: float = 0.2
    gloss: float = 0.0
    grain: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Solid:
    """A shape with a frame of its own, and what it belongs to.

    Attributes:
        shape: a key of `MEET`.
        centre: in metres.
        axes: three unit vectors; y is the axis of cylinders and capsules, the normal of planes.
        half: half sides of a box; radius, half length, unused of the others.
        thing: number of the thing that it is a piece of.
        label: class of that thing.
        part: part of a body, 0 = none.
    """

    shape: str
    centre: Vector
    half: Vector
    paint: Paint
    thing: int
    label: int
    part: int = 0
    axes: tuple[Vector, Vector, Vector] = UPRIGHT

    @property
    def reach(self) -> float:
        """Radius of a ball around the centre that holds the solid."""
        x, y, z = self.half
        if self.shape == "plane":
            return np.inf
        if self.shape == "capsule":
            return x + y
        if self.shape == "ball":
            return x
        return float(np.sqrt(x * x + y * y + (z * z if self.shape == "box" else 0.0)))

    def local(self, v: Vector) -> Vector:
        """A direction in the solid's frame."""
        return dot(self.axes[0], v), dot(self.axes[1], v), dot(self.axes[2], v)

    def world(self, v: Vector) -> Vector:
        """The inverse of `local`."""
        x, y, z = self.axes
        return add(add((v[0] * x[0], v[0] * x[1], v[0] * x[2]), y, v[1]), z, v[2])

    def meet(self, origin: Vector, ray: Vector) -> tuple[np.ndarray, Vector]:
        """Distance along unit rays (inf = missed) and the normal there, both in the world."""
        start = self.local(add(origin, self.centre, -1.0))
        distance, normal = MEET[self.shape](start, self.local(ray), self.half)
        distance = np.where(distance > 1e-4, distance, np.inf)
        return distance, self.world(normal)


def _plane(o: Vector, d: Vector, half: Vector) -> tuple[np.ndarray, Vector]:
    t = np.where(d[1] * o[1] < 0.0, -o[1] / _safe(d[1]), np.inf)
    up = np.where(o[1] > 0.0, 1.0, -1.0) + np.zeros_like(t)
    return t, (np.zeros_like(t), up, np.zeros_like(t))


def _ball(o: Vector, d: Vector, half: Vector) -> tuple[np.ndarray, Vector]:
    b = dot(o, d)
    h = b * b - dot(o, o) + half[0] * half[0]
    t = np.where(h > 0.0, -b - np.sqrt(np.maximum(h, 0.0)), np.inf)
    return t, _out(o, d, t, (0.0, 0.0, 0.0))


def _box(o: Vector, d: Vector, half: Vector) -> tuple[np.ndarray, Vector]:
    near, far = [], []
    for i in range(3):
        turn = 1.0 / _safe(d[i])
        middle, reach = -o[i] * turn, np.abs(half[i] * turn)
        near.append(middle - reach)
        far.append(middle + reach)
    t = np.maximum(np.maximum(near[0], near[1]), near[2])
    hit = t <= np.minimum(np.minimum(far[0], far[1]), far[2])
    sides = [np.where(t == near[i], -np.sign(d[i]), 0.0) for i in range(3)]
    first = sides[0] != 0.0
    second = ~first & (sides[1] != 0.0)
    normal = (sides[0], np.where(first, 0.0, sides[1]), np.where(first | second, 0.0, sides[2]))
    return np.where(hit, t, np.inf), normal


def _side(o: Vector, d: Vector, radius: float) -> tuple[Any, Any]:
    """Where rays enter an endless cylinder along y: distance, and whether they do."""
    a = np.maximum(d[0] * d[0] + d[2] * d[2], TINY)
    b = o[0] * d[0] + o[2] * d[2]
    h = b * b - a * (o[0] * o[0] + o[2] * o[2] - radius * radius)
    return (-b - np.sqrt(np.maximum(h, 0.0))) / a, h > 0.0


def _cylinder(o: Vector, d: Vector, half: Vector) -> tuple[np.ndarray, Vector]:
    radius, tall, _ = half
    t, enters = _side(o, d, radius)
    inside = enters & (np.abs(o[1] + t * d[1]) <= tall)
    lid = -np.sign(d[1])
    t_lid = (lid * tall - o[1]) / _safe(d[1])
    x, z = o[0] + t_lid * d[0], o[2] + t_lid * d[2]
    on_lid = (x * x + z * z <= radius * radius) & ~inside
    side = _out((o[0], 0.0, o[2]), (d[0], 0.0, d[2]), np.where(inside, t, 0.0), (0.0, 0.0, 0.0))
    normal = tuple(
        np.where(on_lid, flat, round_) for flat, round_ in zip((0.0, lid, 0.0), side, strict=True)
    )
    return np.where(inside, t, np.where(on_lid, t_lid, np.inf)), normal


def _capsule(o: Vector, d: Vector, half: Vector) -> tuple[np.ndarray, Vector]:
    radius, tall, _ = half
    t, enters = _side(o, d, radius)
    y = o[1] + t * d[1]
    end = np.clip(y, -tall, tall)
    start = (o[0] + np.zeros_like(t), o[1] - end, o[2] + np.zeros_like(t))
    t_end, _ = _ball(start, d, half)
    t = np.where(enters & (np.abs(y) <= tall), t, np.where(enters, t_end, np.inf))
    at = o[1] + np.where(np.isfinite(t), t, 0.0) * d[1]
    return t, _out(o, d, t, (0.0, np.clip(at, -tall, tall), 0.0))


def _out(o: Vector, d: Vector, t: np.ndarray, middle: Vector) -> Vector:
    """Unit vector from `middle` to the point at distance t."""
    return unit(add(add(o, d, np.where(np.isfinite(t), t, 0.0)), middle, -1.0))


def _safe(value: Any) -> Any:
    return np.where(np.abs(value) < TINY, TINY, value)


MEET: dict[str, Callable[[Vector, Vector, Vector], tuple[np.ndarray, Vector]]] = {
    "plane": _plane,
    "ball": _ball,
    "box": _box,
    "cylinder": _cylinder,
    "capsule": _capsule,
}
