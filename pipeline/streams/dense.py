"""Decoded images with the targets of dense tasks: one column each, mapped and read by index."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.table import ImageTable, column
from archipelago.pipeline.streams.targets import Target


class DenseTable(ImageTable):
    """An `ImageTable` whose rows also hold targets; several tasks share its images.

    Attributes:
        kinds: the targets by name.
        labels: -1 throughout.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        targets = [Target(**facts) for facts in self.marker.get("targets", ())]
        self.kinds: Mapping[str, Target] = {target.name: target for target in targets}
        if not targets:
            raise UserError(f"{path}: holds images without dense targets")
        self._valid: dict[str, np.ndarray] = {}
        self._targets: dict[str, list[np.ndarray]] = {}
        for target in targets:
            columns = [batch.column(column(target.name)) for batch in self._batches]
            valid = [c.is_valid().to_numpy(zero_copy_only=False) for c in columns]
            self._valid[target.name] = np.concatenate([np.empty(0, bool), *valid])
            self._targets[target.name] = [
                np.frombuffer(
                    c.buffers()[1], target.dtype, len(c) * target.bytes(self.size)
                ).reshape(len(c), *target.shape(self.size))
                for c in columns
            ]

    @classmethod
    def open(cls, path: str) -> DenseTable:
        """Map a table; raises UserError where none is complete or it holds no targets."""
        return cls(path)

    def usable(self, name: str) -> np.ndarray:
        """(N,) bool: which rows have a target of this task; the others are quarantined for it."""
        return self._valid[self._known(name)]

    def targets(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Copy targets by position, in the order asked for.

        Args:
            name: of the task.
            indices: (n,) integers in [0, N).

        Returns:
            (n, S, S) uint8, 255 = ignored, or (n, S, S, 3) int8 for normals; rows that are not
            usable are ignored throughout.

        Raises:
            IndexError: for a position outside the table.
            KeyError: for a task that the table does not hold.
        """
        out = self._gather(self._targets[self._known(name)], indices)
        out[~self._valid[name][np.asarray(indices, np.int64)]] = self.kinds[name].blank(self.size)
        return out

    def _known(self, name: str) -> str:
        if name not in self.kinds:
            raise KeyError(f"{self.path}: no task {name!r}; it holds {', '.join(self.kinds)}")
        return name
