"""What passes of frozen CLIP gave, kept for other runs on the same images.

Methods side by side, and a run and its references, look at the same images with the same frozen
CLIP. The key holds all that decides the bits, so that a kept answer is the one that would be made.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np

T = TypeVar("T")
BUDGET = 2**28  # bytes; the least recently used make room


@dataclass
class _Kept:
    value: Any
    bytes: int
    seconds: float


class FrozenPasses:
    """A cache in memory by key.

    Attributes:
        saved_s: by the name that callers give a kind of work, what kept answers took once.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._kept: OrderedDict[tuple[Any, ...], _Kept] = OrderedDict()
        self.saved_s: dict[str, float] = {}

    def get(self, kind: str, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` gave for this key, made where it is not known."""
        key = (kind, *key)
        if key in self._kept:
            self._kept.move_to_end(key)
            found = self._kept[key]
            self.saved_s[kind] = self.saved_s.get(kind, 0.0) + found.seconds
            return cast(T, found.value)
        clock = time.perf_counter()
        value = make()
        size = bytes_of(value)
        if size <= self._budget:
            self._kept[key] = _Kept(value, size, time.perf_counter() - clock)
            while sum(kept.bytes for kept in self._kept.values()) > self._budget:
                self._kept.popitem(last=False)
        return value


def bytes_of(value: Any) -> int:
    """Bytes of the arrays that a value holds, however deep in tuples and data classes."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, tuple | list):
        return sum(bytes_of(part) for part in value)
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in fields(value))
    return 0
