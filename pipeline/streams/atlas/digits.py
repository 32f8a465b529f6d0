"""Handwritten digits: the real 8 x 8 scans that scikit-learn carries, in chalk on slate."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    Dice,
    blend,
    camera,
    finish,
    flat,
    noise,
    shade,
)
from archipelago.pipeline.streams.atlas.scene import Request, Scene

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_FIFTHS = (1, 3)  # of every five scans of a digit, those that only the test split may use


@cache
def scans() -> tuple[np.ndarray, ...]:
    """Per digit, its scans in file order: uint8 (n, 8, 8), ink 0..240."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)
    return tuple(images[bunch.target == digit] for digit in range(10))


def scan_number(seed: int, split: str, label: int, ordinal: int) -> int:
    """Which of a digit's scans an image shows: the two splits never share one, whatever the seed.

    Within a split the scans are drawn without repetition until they are used up.
    """
    pool = [n for n in range(len(scans()[label])) if (n % 5 in TEST_FIFTHS) == (split == "test")]
    dice = Dice("scans", seed, split, label)
    for last in range(len(pool) - 1, 0, -1):
        other = dice.below(last + 1)
        pool[last], pool[other] = pool[other], pool[last]
    return pool[ordinal % len(pool)]


def _contour() -> np.ndarray:
    """A table that turns blurred ink into strokes with a firm edge."""
    return np.clip((np.arange(256) - 60) * 2, 0, 255).astype(np.uint8)


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One digit in chalk on a slate that was wiped before."""
    number = scan_number(request.seed, request.split, request.label, request.ordinal)
    scan = np.pad(scans()[request.label][number], 1)  # strokes end softly at the scan's edge
    edge = CANVAS * dice.between(92, 106) // 100
    stroke = Image.fromarray(scan).resize((edge, edge), Image.Resampling.BICUBIC)
    sheet = Image.new("L", (CANVAS, CANVAS))
    sheet.paste(stroke, ((CANVAS - edge) // 2, (CANVAS - edge) // 2))
    mask = _contour()[np.asarray(camera(dice, sheet, turn=12, shift=2))]
    slate, chalk = dice.near((36, 38, 52), 10), dice.near((238, 234, 224), 10)
    board = shade(flat(slate), 236 + noise(dice, 3) * 60 // 255)
    return finish(dice, blend(board, chalk, mask), grain=8, light=14)


SCENE = Scene(
    name="digits",
    classes=CLASSES,
    templates=("the handwritten digit {}.", "the digit {}.", "a photo of the number {}."),
    paint=paint,
    source="Optical Recognition of Handwritten Digits (UCI), as shipped with scikit-learn",
    licence="CC-BY-4.0",
)
