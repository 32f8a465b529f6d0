"""The embedded set for dense tasks: rendered scenes with exact targets, the same for a seed.

People with limbs, dogs, balls, crates, barrels, tables and trees on a ground, before walls or the
sky. Raise `VERSION` whenever a pixel changes: the digests of the splits are made of it.
"""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import Dice
from archipelago.pipeline.streams.scenes.caster import lit, look
from archipelago.pipeline.streams.scenes.layout import compose
from archipelago.pipeline.streams.scenes.shading import picture
from archipelago.pipeline.streams.scenes.things import CLASSES, PARTS
from archipelago.pipeline.streams.scenes.truth import truth
from archipelago.pipeline.streams.targets import Target

VERSION = 1
TASKS = (
    Target("edges", "edges", 2),
    Target("normals", "normals", 0),
    Target("parts", "parts", len(PARTS)),
    Target("saliency", "saliency", 2),
    Target("semseg", "segmentation", len(CLASSES)),
)
NAMES = {
    "edges": ("inside", "edge"),
    "normals": (),
    "parts": PARTS,
    "saliency": ("background", "salient"),
    "semseg": CLASSES,
}


def render(seed: int, split: str, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Image `index` of a split, uint8 (64, 64, 3), and its targets by task."""
    dice = Dice("scenes", seed, split, index)
    scene = compose(dice)
    seen = look(scene.camera, scene.solids)
    image = picture(scene, seen, lit(scene.camera, seen, scene.solids, scene.light), dice)
    return image, truth(scene, seen, image)
