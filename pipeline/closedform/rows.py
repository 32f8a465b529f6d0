"""Calibration rows: a few training images of a task that can be left out again (7.2).

Which ones depends on the images alone: those of distinct (pixels, label) with the smallest
hashes, so that parts of a split merge to what the whole split would have given.

Shapes: N rows offered, R rows kept, K compact width, F embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

MOST = 256  # rows of a task
_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class CalibrationRows:
    """Rows in the order of their keys.

    Attributes:
        compact: (R, K) compact features, half precision.
        frozen: (R, F) CLIP features, half precision.
        labels: (R,) class in the task's list.
        copies: (R,) how many equal rows the sums hold (of rows that are not in the sums, how
            many there are).
        keys: (R,) uint64, first 8 bytes of the hash of pixels and label.
        counted: (R,) whether the row is in the sums.
        places: (R,) position of the row in its split.
    """

    compact: np.ndarray
    frozen: np.ndarray
    labels: np.ndarray
    copies: np.ndarray
    keys: np.ndarray
    counted: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def pick(
        cls,
        images_NHWC: np.ndarray,
        compact_NK: np.ndarray,
        frozen_NF: np.ndarray,
        labels_N: np.ndarray,
        places_N: np.ndarray,
        counted_N: np.ndarray | None = None,
        most: int = MOST,
    ) -> CalibrationRows:
        """The rows with the smallest keys; equal rows are counted, not repeated.

        Args:
            images_NHWC: uint8 pixels, the identity of a row.
            compact_NK: compact features.
            frozen_NF: CLIP features.
            labels_N: class of each row.
            places_N: position of each row in its split.
            counted_N: whether a row is in the sums; None = all are.
            most: rows to keep.

        Raises:
            ValueError: a feature is not finite.
        """
        if not (np.isfinite(compact_NK).all() and np.isfinite(frozen_NF).all()):
            raise ValueError("features of calibration rows are not finite")
        counted = np.ones(len(labels_N), bool) if counted_N is None else np.asarray(counted_N, bool)
        every = cls(
            np.clip(compact_NK, -_HALF, _HALF).astype(np.float16),
            np.clip(frozen_NF, -_HALF, _HALF).astype(np.float16),
            np.asarray(labels_N, dtype=np.int64),
            np.ones(len(labels_N), dtype=np.int64),
            _keys(images_NHWC, labels_N),
            counted,
            np.asarray(places_N, dtype=np.int64),
        )
        return every._distinct().thinned(most)

    def merged(self, other: CalibrationRows, most: int = MOST) -> CalibrationRows:
        """What picking from both parts of one split would have given."""
        both = {
            field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
            for field in fields(self)
        }
        return CalibrationRows(**both)._distinct().thinned(most)

    def thinned(self, most: int) -> CalibrationRows:
        """The `most` rows with the smallest keys."""
        return self if len(self) <= most else self._take(np.arange(most))

    def where(self, mask_R: np.ndarray) -> CalibrationRows:
        """The rows for which a mask holds."""
        return self._take(np.flatnonzero(mask_R))

    def relabelled(self, places: np.ndarray) -> CalibrationRows:
        """The same rows in a longer class list, where class i stands at `places[i]`."""
        arrays = self._fields()
        return CalibrationRows(**{**arrays, "labels": np.asarray(places, np.int64)[self.labels]})

    def numbers(self) -> int:
        """Stored numbers."""
        return sum(array.size for array in self._fields().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Stored arrays by name; keys as int64, which every tensor format knows."""
        return {**self._fields(), "keys": self.keys.view(np.int64)}

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray]) -> CalibrationRows:
        """Inverse of `arrays`; other names are left alone."""
        own = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**{**own, "keys": np.ascontiguousarray(own["keys"]).view(np.uint64)})

    def _fields(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _take(self, index: np.ndarray) -> CalibrationRows:
        return CalibrationRows(**{name: array[index] for name, array in self._fields().items()})

    def _distinct(self) -> CalibrationRows:
        """One row a key, in their order: the first in the split, with the copies of all.

        Where some copies are in the sums and some are not, those in the sums count.
        """
        if len(self) == 0:
            return self
        order = np.lexsort((self.places, self.keys))
        rows = self._take(order)
        keys, first, inverse = np.unique(rows.keys, return_index=True, return_inverse=True)
        inside = np.bincount(inverse, rows.copies * rows.counted, len(keys)).astype(np.int64)
        outside = np.bincount(inverse, rows.copies * ~rows.counted, len(keys)).astype(np.int64)
        copies = np.where(inside > 0, inside, outside)
        arrays = {**rows._take(first)._fields(), "copies": copies, "counted": inside > 0}
        return CalibrationRows(**arrays)


def _keys(images_NHWC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """(N,) uint64 from each image's pixels and label."""
    keys = np.zeros(len(labels_N), dtype=np.uint64)
    for row, (image, label) in enumerate(zip(images_NHWC, labels_N, strict=True)):
        digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8)
        digest.update(int(label).to_bytes(8, "little"))
        keys[row] = int.from_bytes(digest.digest(), "little")
    return keys
