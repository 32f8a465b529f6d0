"""The rendered scenes: rays meet what is there, targets say what was met, a seed says it all."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from archipelago.pipeline.streams.atlas.canvas import Dice
from archipelago.pipeline.streams.scenes import NAMES, TASKS, render
from archipelago.pipeline.streams.scenes.solids import MEET, Paint, Solid, Vector, unit
from archipelago.pipeline.streams.scenes.things import BUILDERS, placed
from archipelago.pipeline.streams.targets import SCALE

PAINT = Paint((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
HALF = {
    "ball": (0.7, 0.7, 0.7),
    "box": (0.5, 0.8, 0.3),
    "cylinder": (0.4, 0.6, 0.4),
    "capsule": (0.3, 0.5, 0.3),
}


def inside(shape: str, p: np.ndarray) -> np.ndarray:
    """Signed distance-like value of points (n, 3) in a solid's frame; below 0 = inside."""
    x, y, _ = HALF[shape]
    round_ = np.hypot(p[:, 0], p[:, 2])
    if shape == "ball":
        return np.linalg.norm(p, axis=1) - x
    if shape == "box":
        return (np.abs(p) - np.array(HALF[shape])).max(axis=1)
    if shape == "cylinder":
        return np.maximum(round_ - x, np.abs(p[:, 1]) - y)
    return np.hypot(round_, np.maximum(np.abs(p[:, 1]) - y, 0.0)) - x


@pytest.mark.parametrize("shape", sorted(HALF))
def test_rays_meet_solids_where_marching_along_them_does(shape: str) -> None:
    rng = np.random.default_rng(0)
    frame, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    frame[2] = np.cross(frame[0], frame[1])
    centre = np.array([0.3, -0.2, 0.5])
    axes: tuple[Vector, Vector, Vector] = tuple(tuple(row) for row in frame)  # type: ignore[assignment]
    solid = Solid(shape, tuple(centre), HALF[shape], PAINT, 1, 1, axes=axes)
    start = rng.normal(size=(800, 3))
    start = centre + 3 * start / np.linalg.norm(start, axis=1, keepdims=True)
    goal = centre + rng.normal(size=(800, 3)) * 0.6
    ray = unit(tuple((goal - start).T))  # type: ignore[arg-type]
    distance, normal = solid.meet(tuple(start.T), ray)  # type: ignore[arg-type]
    steps = np.arange(0.0, 6.0, 0.004)
    way = np.stack(ray, axis=1)
    points = start[:, None] + steps[None, :, None] * way[:, None]
    values = inside(shape, ((points - centre) @ frame.T).reshape(-1, 3)).reshape(800, -1)
    marched = np.where((values < 0).any(axis=1), steps[(values < 0).argmax(axis=1)], np.inf)
    both = np.isfinite(marched) & np.isfinite(distance)
    assert both.sum() > 200
    assert (np.isfinite(marched) & ~np.isfinite(distance)).sum() == 0
    assert (np.isfinite(distance) & ~np.isfinite(marched)).sum() <= 8  # grazed between two steps
    gap = np.abs(distance[both] - marched[both])
    assert gap.max() < 0.15 and np.median(gap) < 0.004
    hit = (start + distance[:, None].clip(max=9) * way)[both]
    n = np.stack(normal, axis=1)[both]
    assert np.abs(inside(shape, (hit - centre) @ frame.T)).max() < 1e-6
    assert (
        np.allclose(np.linalg.norm(n, axis=1), 1.0) and ((n * way[both]).sum(axis=1) < 1e-9).all()
    )
    out = inside(shape, (hit + 1e-3 * n - centre) @ frame.T)
    assert (out > 5e-4).mean() > 0.99


def test_a_plane_is_met_from_both_sides_and_never_behind() -> None:
    t, normal = MEET["plane"](
        (np.zeros(3), np.array([2.0, -2.0, 2.0]), np.zeros(3)),
        (np.zeros(3), np.array([-1.0, 1.0, 1.0]), np.zeros(3)),
        (1.0, 1.0, 1.0),
    )
    assert t.tolist() == [2.0, 2.0, np.inf] and normal[1].tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_things_stand_on_the_ground(build: object) -> None:
    for throw in range(6):
        solids = placed(build(Dice("things", throw)), 7, 100, 1.0, -3.0)  # type: ignore[operator]
        x, z = np.random.default_rng(throw).uniform(-1, 1, (2, 5000)) + np.array([[1.0], [-3.0]])
        below, rise = np.full(5000, -1.0), (np.zeros(5000), np.ones(5000), np.zeros(5000))
        heights = [s.meet((x, below, z), rise)[0].min() for s in solids]
        assert -0.001 < min(heights) - 1.0 < 0.03
        assert {s.thing for s in solids} == {7}


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    image, targets = render(0, "train", 3)
    again, same = render(0, "train", 3)
    assert (image == again).all() and all((targets[n] == same[n]).all() for n in targets)
    others = [render(1, "train", 3)[0], render(0, "test", 3)[0], render(0, "train", 4)[0]]
    assert all((image != other).any() for other in others)


def test_regression_of_the_rendered_bytes() -> None:
    """The same bytes on every machine; change VERSION of the scenes where this changes."""
    digest = hashlib.sha256()
    for index in range(4):
        image, targets = render(0, "test", index)
        for array in (image, *(targets[name] for name in sorted(targets))):
            digest.update(array.tobytes())
    assert digest.hexdigest()[:16] == "36a07d826eb4852c"


def test_targets_agree_with_each_other() -> None:
    seen: dict[str, set[int]] = {task.name: set() for task in TASKS}
    shares = []
    for index in range(24):
        image, targets = render(0, "train", index)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 5
        for task in TASKS:
            assert targets[task.name].shape == task.shape(64)
            assert targets[task.name].dtype == task.dtype
            if task.kind != "normals":
                seen[task.name] |= set(np.unique(targets[task.name]).tolist())
        semseg, parts, salient = (targets[n] for n in ("semseg", "parts", "saliency"))
        assert ((parts > 0) == (semseg == 1)).all()  # people are all parts, nothing else is
        assert (semseg[salient == 1] != 0).all()
        length = np.linalg.norm(targets["normals"].astype(float) / SCALE, axis=-1)
        assert ((length == 0) | (np.abs(length - 1) < 0.01)).all()
        assert (length[semseg > 0] > 0).all()
        assert (targets["normals"][..., 2] > -0.1 * SCALE).mean() > 0.98  # towards the viewer
        edge = targets["edges"] == 1
        change = np.zeros((64, 64), bool)
        change[:-1] |= semseg[:-1] != semseg[1:]
        change[1:] |= semseg[:-1] != semseg[1:]
        change[:, :-1] |= semseg[:, :-1] != semseg[:, 1:]
        change[:, 1:] |= semseg[:, :-1] != semseg[:, 1:]
        assert not (edge & ~change).all() or not edge.any()
        near = np.pad(edge, 1)
        near = near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:] | edge
        assert near[change].all()  # wherever classes meet there is an edge on one of both sides
        shares.append([(semseg > 0).mean(), salient.mean(), edge.mean(), (parts > 0).any()])
    for task in TASKS:
        if task.kind != "normals":
            assert seen[task.name] == set(range(task.classes)) == set(range(len(NAMES[task.name])))
    low, high = (0.08, 0.03, 0.03, 0.6), (0.4, 0.25, 0.15, 1.0)
    assert all(
        a < share < b for a, share, b in zip(low, np.mean(shares, axis=0), high, strict=True)
    )
