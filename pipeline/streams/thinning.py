"""Regions to lines one pixel wide: what edge maps are judged by, and made of from label maps."""

from __future__ import annotations

import itertools

import numpy as np


def _removable() -> np.ndarray:
    """(2, 256) bool: may a pixel go whose 8 neighbours are the bits of the index, in each pass?

    Thinning of Guo and Hall (1989): a pixel goes if it joins nothing, is no end of a line, and lies
    on the side that the pass peels.
    """
    table = np.zeros((2, 256), bool)
    for code in range(256):
        n = [bool(code >> bit & 1) for bit in range(8)]  # from the upper left, clockwise
        p = [n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[0]]  # north first
        crossings = sum(not p[i] and (p[(i + 1) % 8] or p[(i + 2) % 8]) for i in (0, 2, 4, 6))
        one = sum(p[i] or p[(i + 1) % 8] for i in (7, 1, 3, 5))
        two = sum(p[i] or p[(i + 1) % 8] for i in (0, 2, 4, 6))
        sides = ((p[4] or p[5] or not p[7]) and p[6], (p[0] or p[1] or not p[3]) and p[2])
        for turn in (0, 1):
            table[turn, code] = crossings == 1 and 2 <= min(one, two) <= 3 and not sides[turn]
    return table


_REMOVABLE = _removable()
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def thin(masks: np.ndarray) -> np.ndarray:
    """Regions (..., H, W) bool to lines one pixel wide, connected as before."""
    padded = np.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(1, 1), (1, 1)]).astype(np.uint8)
    flat = padded.reshape(-1)  # a view: only the pixels that are left are looked at
    steps = [y * padded.shape[-1] + x for y, x in _AROUND]
    left = np.flatnonzero(flat)
    quiet = 0
    for turn in itertools.cycle((0, 1)):
        code = np.zeros(len(left), np.uint8)
        for bit, step in enumerate(steps):
            code |= flat[left + step] << np.uint8(bit)
        goes = _REMOVABLE[turn][code]
        flat[left[goes]] = 0
        left = left[~goes]
        quiet = 0 if goes.any() else quiet + 1
        if quiet == 2:
            break
    return padded[..., 1:-1, 1:-1].astype(bool)
