"""Random choices that depend on their words alone: the same on any machine and numpy version."""

from __future__ import annotations

import hashlib

import numpy as np


def draws(count: int, words: str) -> np.ndarray:
    """(count,) uint64 from a counter-based generator whose raw stream numpy promises to keep.

    A longer draw begins with the shorter one.
    """
    digest = hashlib.sha256(words.encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def rank_in_class(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) int64 place of each row among those of its class (N,) by ascending key (N,), from 0."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    rank[np.lexsort((keys, inverse))] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank
