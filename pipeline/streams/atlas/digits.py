"""Handwritten digits: the real 8 x 8 scans that scikit-learn carries, inked on paper."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from pipeline.streams.atlas.canvas import (
    CANVAS,
    Dice,
    blend,
    camera,
    finish,
    flat,
    noise,
    shade,
)
from pipeline.streams.atlas.scene import Request, Scene

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_PERCENT = 40  # share of each digit's scans that only the test split may use


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
    count = len(scans()[label])
    tests = count * TEST_PERCENT // 100
    start, size = (0, tests) if split == "test" else (tests, count - tests)
    dice = Dice("scans", seed, split, label)
    order = list(range(size))
    for last in range(size - 1, 0, -1):
        other = dice.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return start + order[ordinal % size]


def _contour() -> np.ndarray:
    """A table that turns blurred ink into strokes with a firm edge."""
    return np.clip((np.arange(256) - 70) * 2, 0, 255).astype(np.uint8)


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One digit, a little turned and shifted, in one ink on slightly uneven paper."""
    scan = scans()[request.label][
        scan_number(request.seed, request.split, request.label, request.ordinal)
    ]
    edge = CANVAS * dice.between(68, 80) // 100
    ink = Image.fromarray(scan).resize((edge, edge), Image.Resampling.BICUBIC)
    sheet = Image.new("L", (CANVAS, CANVAS))
    sheet.paste(ink, ((CANVAS - edge) // 2, (CANVAS - edge) // 2))
    mask = _contour()[np.asarray(camera(dice, sheet, turn=16, shift=3))]
    paper, pen = dice.near((238, 234, 224), 8), dice.near((36, 36, 56), 22)
    page = shade(flat(paper), 240 + noise(dice, 3) * 24 // 255)
    return finish(dice, blend(page, pen, mask), grain=8, light=16)


SCENE = Scene(
    name="digits",
    classes=CLASSES,
    templates=(
        "the number {}.",
        "the digit {}.",
        "a photo of the number {}.",
    ),
    paint=paint,
    source="Optical Recognition of Handwritten Digits (UCI), as shipped with scikit-learn",
    licence="CC-BY-4.0",
)
