"""What passes of frozen CLIP gave is kept for other runs on the same images."""

from __future__ import annotations

import time

import numpy as np

from archipelago.pipeline.closedform import Sums
from archipelago.pipeline.learned.passed import FrozenPasses, bytes_of


def test_what_is_known_is_not_made_again_and_says_what_it_took() -> None:
    kept, made = FrozenPasses(), []

    def make() -> np.ndarray:
        made.append(1)
        time.sleep(0.02)
        return np.arange(3)

    first = kept.get("look", ("table", b"rows"), make)
    assert kept.saved_s == {}
    assert kept.get("look", ("table", b"rows"), make) is first and len(made) == 1
    assert kept.saved_s["look"] >= 0.02
    kept.get("look", ("table", b"others"), make)
    kept.get("statistics", ("table", b"rows"), make)
    assert len(made) == 3


def test_the_least_recently_used_makes_room() -> None:
    kept, made = FrozenPasses(budget=20), []

    def get(name: str, size: int = 8) -> None:
        kept.get("look", (name,), lambda: made.append(name) or np.zeros(size, np.uint8))

    for name in ("a", "b", "a", "c", "a", "b"):
        get(name)
    assert made == ["a", "b", "c", "b"]
    get("large", 21)
    get("large", 21)
    assert made[-2:] == ["large", "large"], "too large to be kept"


def test_bytes_are_counted_through_records() -> None:
    sums = Sums.of(np.eye(4), np.array([0, 0, 1, 1]), 2)
    assert bytes_of((sums, [np.zeros(2, np.float32)], "text")) == 8 * (2 + 2 * 4 + 10) + 8
