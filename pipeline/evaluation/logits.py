"""A logit of an (image, function, class list) never changes: computed once, stored, reused.

Shapes: n rows of a test split, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from pipeline.store import Folder, RunFolder
from pipeline.store.tensors import dump, load

FROZEN = "frozen"
Compute = Callable[[np.ndarray], np.ndarray]


class LogitStore:
    """Logits per (task, function) in `<run>/evaluation/logits`, a row at a time.

    Args:
        run: the run folder.
        hashes: function -> sha256 of its group, part of the file's name.
    """

    def __init__(self, run: RunFolder, hashes: Mapping[str, str]) -> None:
        self._folder: Folder = run.folder.child("evaluation/logits")
        self.hashes = dict(hashes)
        self._tables: dict[tuple[str, str | None], np.ndarray] = {}
        self.computed = 0

    def _name(self, task: str, digest: str, function: str | None) -> str:
        version = FROZEN if function is None else f"{function}-{self.hashes[function][:16]}"
        return f"{task}-{digest[:16]}/{version}.safetensors"

    def get(
        self,
        task: str,
        digest: str,
        function: str | None,
        rows: np.ndarray,
        shape: tuple[int, int],
        compute: Compute,
    ) -> np.ndarray:
        """Logits (len(rows), C) of one task's test rows under one function.

        Args:
            task: whose test split.
            digest: identity of the split and its class list.
            function: name of the function, None = frozen CLIP.
            rows: wanted rows.
            shape: (rows of the split, C).
            compute: called once with the rows that are missing.

        Raises:
            RuntimeError: `compute` returned another number of rows.
        """
        key = (task, function)
        name = self._name(task, digest, function)
        if key not in self._tables:
            table = np.full(shape, np.nan, dtype=np.float32)
            if self._folder.exists(name):
                stored = load(self._folder.read(name), name)
                table[stored["rows"].numpy()] = stored["logits"].numpy()
            self._tables[key] = table
        table = self._tables[key]
        missing = rows[np.isnan(table[rows, 0])]
        if len(missing):
            fresh = compute(missing)
            if fresh.shape != (len(missing), shape[1]):
                raise RuntimeError(
                    f"{task}: {len(missing)} rows were sent for evaluation, {len(fresh)} came back"
                )
            table[missing] = fresh
            self.computed += len(missing)
            known = np.flatnonzero(~np.isnan(table[:, 0]))
            self._folder.write(name, dump({"rows": known, "logits": table[known]}))
        return table[rows]


def list_digest(content: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> str:
    """Identity of a test split together with the class list it is scored on."""
    return hashlib.sha256(repr((content, classes, templates)).encode()).hexdigest()
