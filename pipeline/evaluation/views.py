"""Stored features of test images as a view: every image is encoded once for each function.

Shapes: N images of a split, n rows of them, K compact features, F embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from archipelago.pipeline.closedform import CalibrationRows, Sums
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.methods import Function, View
from archipelago.pipeline.records import ClassList
from archipelago.pipeline.store import Folder, GroupRef, RunFolder
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.streams import PreparedDomain


class Encoder(Protocol):
    """An `Engine` (pipeline/learned/engine.py), or a pool of them."""

    def install(self, refs: Sequence[GroupRef]) -> None:
        """See `Engine.install`."""

    def look(self, table: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.look`."""
        ...

    def statistics(
        self, table: str, rows: np.ndarray, classes: int, held: np.ndarray | None = None
    ) -> tuple[Sums, CalibrationRows]:
        """See `Engine.statistics`; any number of rows."""
        ...

    def features(self, table: str, rows: np.ndarray, function: Function) -> np.ndarray:
        """See `Engine.features`."""
        ...

    def texts(self, listed: ClassList, function: Function | None) -> np.ndarray:
        """See `Engine.texts`."""
        ...

    def dense(
        self, table: str, rows: np.ndarray, task: str, kind: str, classes: int
    ) -> dict[str, np.ndarray]:
        """See `Engine.dense`."""
        ...


class FeatureStore:
    """Features of test splits under functions, in `<run>/evaluation`, a row at a time.

    A feature of an (image, function) pair never changes; a function is named by the hash of the
    weights it uses, so one whose weights change is computed anew.

    Args:
        run: the run folder.
        encoder: computes what is not stored.
        width: K, part of the files' names.
        settings: of the identifier, `depths` and `mirror` likewise.
    """

    def __init__(
        self, run: RunFolder, encoder: Encoder, width: int, settings: IdentifierSettings
    ) -> None:
        self._folder: Folder = run.folder.child("evaluation")
        self._encoder = encoder
        self._kind = f"{settings.depths}-{width}{'-mirror' * settings.mirror}"
        self.versions: dict[str, str] = {}
        self.computed = 0
        self._tables: dict[tuple[str, Function, str], np.ndarray] = {}

    def frozen(self, domain: PreparedDomain, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Compact (N, K) and CLIP features (N, F) of a test split.

        Raises:
            RuntimeError: the encoder lost a row.
        """
        name = f"features/{domain.name}-{domain.digests['test'][:16]}-{self._kind}.safetensors"
        known = self._folder.exists(name)
        if known:
            stored = load(self._folder.read(name), name)
            compact, frozen = stored["compact"].numpy(), stored["frozen"].numpy()
        else:
            compact, frozen = self._encoder.look(domain.tables["test"], np.arange(count))
        if not len(compact) == len(frozen) == count:
            raise RuntimeError(f"{domain.name}: {count} test images, features of {len(compact)}")
        if not known:
            self._folder.write(name, dump({"compact": compact, "frozen": frozen}))
        return compact, frozen

    def get(
        self, domain: PreparedDomain, count: int, function: Function, rows: np.ndarray
    ) -> np.ndarray:
        """Image features (n, F) of some test images under a function with weights.

        Raises:
            RuntimeError: the encoder lost a row.
        """
        assert function.weights is not None
        version = self.versions[function.weights]
        key = (domain.name, function, version)
        where = f"functions/{domain.name}-{domain.digests['test'][:16]}"
        name = f"{where}/{function.task}-{version[:16]}.safetensors"
        if key not in self._tables and self._folder.exists(name):
            stored = load(self._folder.read(name), name)
            features = stored["features"].numpy()
            self._tables[key] = np.full((count, features.shape[1]), np.nan, np.float32)
            self._tables[key][stored["rows"].numpy()] = features
        table = self._tables.get(key)
        missing = rows if table is None else rows[np.isnan(table[rows, 0])]
        missing = np.unique(missing)
        if len(missing):
            fresh = self._encoder.features(domain.tables["test"], missing, function)
            if len(fresh) != len(missing):
                raise RuntimeError(
                    f"{domain.name}: {len(missing)} rows were sent for evaluation, {len(fresh)}"
                    " came back"
                )
            if table is None:
                table = self._tables[key] = np.full((count, fresh.shape[1]), np.nan, np.float32)
            table[missing] = fresh
            self.computed += len(missing)
            known = np.flatnonzero(~np.isnan(table[:, 0]))
            self._folder.write(name, dump({"rows": known, "features": table[known]}))
        assert table is not None
        return table[rows]


Fetch = Callable[[Function, np.ndarray], np.ndarray]


class SplitView(View):
    """Images of a split whose features are stored, or computed when they are asked for.

    Args:
        compact: (n, K).
        frozen: (n, F).
        fetch: features of some rows under a function.
        texts: class features by name.
        versions: hash of each task's weights.
    """

    def __init__(
        self,
        compact: np.ndarray,
        frozen: np.ndarray,
        fetch: Fetch,
        texts: Texts,
        versions: Mapping[str, str],
    ) -> None:
        self.compact, self.frozen = compact, frozen
        self._fetch, self._texts, self._versions = fetch, texts, versions
        self._rows = np.arange(len(compact))

    def prepare(self, pairs: Sequence[tuple[int, Function]]) -> None:
        """Fetch features function by function: the store keeps them."""
        wanted: dict[Function, list[int]] = {}
        for row, function in pairs:
            wanted.setdefault(function, []).append(int(self._rows[row]))
        for function, rows in wanted.items():
            self._fetch(function, np.array(rows))

    def features(self, function: Function) -> np.ndarray:
        """Features (n, F) under a function."""
        return self._fetch(function, self._rows)

    def text(self, listed: ClassList, function: Function | None) -> np.ndarray:
        """Class features (C, F)."""
        version = None
        if function is not None and function.weights is not None:
            version = self._versions.get(function.weights)
        return self._texts.get(listed, function, version)

    def take(self, rows: np.ndarray) -> SplitView:
        """Of some of the images."""
        part = SplitView.__new__(SplitView)
        part.__dict__.update(self.__dict__)
        part.compact, part.frozen = self.compact[rows], self.frozen[rows]
        part._rows = self._rows[rows]
        return part


class CachedFeatures:
    """Features of training rows that are needed for a moment only.

    Args:
        encoder: computes them.
        table: the split.
        rows: (n,) rows of the table.
    """

    def __init__(self, encoder: Encoder, table: str, rows: np.ndarray) -> None:
        self._encoder, self._table, self._rows = encoder, table, rows
        self._known: dict[tuple[int, Function], np.ndarray] = {}

    def __call__(self, function: Function, at: np.ndarray) -> np.ndarray:
        """Features (m, F) of some of the rows under a function."""
        missing = [i for i in dict.fromkeys(at.tolist()) if (i, function) not in self._known]
        if missing:
            found = self._encoder.features(self._table, self._rows[missing], function)
            self._known.update({(i, function): v for i, v in zip(missing, found, strict=True)})
        return np.stack([self._known[i, function] for i in at.tolist()])
