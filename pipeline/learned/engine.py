"""Forward passes of an encoder: features, statistics of a split, and functions of learned stages.

An engine holds frozen CLIP and the functions learned so far. It runs in the driver's process, or as
one of several actors (`actors/encoders.py`) with the same methods.

Shapes: n rows, L tokens, D width, K compact features, F embedding, C classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from archipelago.pipeline.closedform import Basis, CalibrationRows, Sums
from archipelago.pipeline.dense import build, stored_heads
from archipelago.pipeline.learned.passes import FeaturePass
from archipelago.pipeline.methods import Function, build_method
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.pace import Pace
from archipelago.pipeline.records import ClassList
from archipelago.pipeline.records.basis import read_basis
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder, names
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.streams import DenseTable, ImageTable

Statistics = tuple[Sums, CalibrationRows]
Looked = tuple[np.ndarray, np.ndarray]
PART = 2048  # rows whose sums are formed at once, whoever forms them: the same bits on any cluster


@dataclass(frozen=True)
class EngineSpec:
    """What an engine needs to be built anywhere."""

    settings: Settings
    run: str
    kernels: Kernels
    threads: int = 0


class Engine:
    """Frozen CLIP and the learned functions, ready to encode."""

    def __init__(self, spec: EngineSpec) -> None:
        if spec.threads:
            torch.set_num_threads(spec.threads)
        settings = spec.settings
        self.settings = settings
        self.backbone = load_backbone(settings.backbone, spec.kernels.device, spec.kernels)
        self.method = build_method(settings, None, self.backbone)
        self.run = RunFolder(spec.run, read_only=True)
        self.installed: dict[str, str] = {}
        self._heads: dict[str, dict[str, Tensor]] = {}
        self._trunks: OrderedDict[str, Tensor] = OrderedDict()
        self._budget = int(settings.training.cache_gib * 2**30)
        self._pass = FeaturePass(self.method, settings.identifier)

    @cached_property
    def basis(self) -> Basis:
        """What compact features are made with, as stored with the run."""
        return read_basis(self.run)

    def install(self, refs: Sequence[GroupRef]) -> None:
        """Load the groups that are not here yet; hashes are verified.

        Raises:
            ValueError: a group of the same name with other weights is installed.
        """
        for ref in refs:
            known = self.installed.get(ref.name)
            if known == ref.sha256:
                continue
            if known is not None:
                raise ValueError(f"'{ref.name}' is installed with other weights")
            tensors = load(self.run.groups.read(ref, names.GROUP), ref.name)
            if not tensors:  # a closed form, for the time being or for ever
                continue
            self.method.install(ref.name, tensors)
            self._heads |= stored_heads(tensors)
            self.installed[ref.name] = ref.sha256

    # -- frozen CLIP -------------------------------------------------------------------------

    def raw(self, images_BSSC: np.ndarray) -> Looked:
        """Raw signature features (B, S) and CLIP's features (B, F) of uint8 images."""
        return self._pass.raw(images_BSSC)[1:]

    def raw_rows(self, table: str, rows: np.ndarray) -> Looked:
        """The same of some rows of a table."""
        images = ImageTable.open(table)
        parts = [self.raw(images.images(batch)) for batch in self._batches(rows)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def look(self, table: str, rows: np.ndarray) -> Looked:
        """Compact (n, K) and CLIP features (n, F) of some rows, float32."""
        images = ImageTable.open(table)
        keep = self.method.trains and self._room(table, images)
        compact, frozen = [], []
        for batch in self._batches(rows):
            passed = self._pass(images.images(batch), self.basis)
            compact.append(passed.compact)
            frozen.append(passed.frozen)
            if keep:
                self._trunks[table][batch] = passed.x_BLD.cpu()
        if not compact:
            return np.zeros((0, self.basis.width), np.float32), np.zeros((0, 0), np.float32)
        return np.concatenate(compact), np.concatenate(frozen)

    def statistics(
        self, table: str, rows: np.ndarray, classes: int, held: np.ndarray | None = None
    ) -> Statistics:
        """Sums and calibration rows of some rows: the features themselves stay here.

        Args:
            table: decoded images.
            rows: (n,) which; at most `PART` for the same bits on any number of encoders.
            classes: length of the class list.
            held: rows kept out of the sums; calibration rows are then taken from them.
        """
        images = ImageTable.open(table)
        compact, frozen, pixels = [], [], []
        for batch in self._batches(rows):
            seen = images.images(batch)
            passed = self._pass(seen, self.basis)
            compact.append(passed.compact)
            frozen.append(passed.frozen)
            pixels.append(seen)
        features, labels = np.concatenate(compact), images.labels[rows]
        counted = np.ones(len(rows), bool) if held is None else ~np.isin(rows, held)
        offered = np.ones(len(rows), bool) if held is None else ~counted
        picked = CalibrationRows.pick(
            np.concatenate(pixels)[offered],
            features[offered],
            np.concatenate(frozen)[offered],
            labels[offered],
            rows[offered],
            counted[offered],
        )
        return Sums.of(features[counted], labels[counted], classes), picked

    # -- functions ---------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, table: str, rows: np.ndarray, function: Function) -> np.ndarray:
        """Normalised image features (n, F) of some rows under one function, float32."""
        parts = []
        for batch in self._batches(rows):
            with self.backbone.kernels.exact():
                v_BF = self.method.image_features(
                    self._trunk(table, batch), [function] * len(batch)
                )
            parts.append(v_BF.cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    @torch.no_grad()
    def texts(self, listed: ClassList, function: Function | None) -> np.ndarray:
        """Class features (C, F) under one function, None = frozen CLIP.

        The whole list is encoded at once, whatever was asked before: the same bits every time.
        """
        with self.backbone.kernels.exact():
            return self.method.encode_list(listed, function).cpu().numpy()

    @torch.no_grad()
    def dense(
        self, table: str, rows: np.ndarray, task: str, kind: str, classes: int
    ) -> dict[str, np.ndarray]:
        """Sums of a dense task's metric over some rows under the task's own function.

        Raises:
            KeyError: the task has no head; it was not learned yet.
        """
        images, dense, tower = DenseTable.open(table), build(kind, classes), self.backbone.image
        depths = tower.depths(self.method.first_blocks[0])
        channels = self.settings.training.head_channels
        head = dense.head([tower.width] * len(depths), tower.grid, tower.image_size, channels)
        head.load_state_dict(self._heads[task], strict=True)
        head.to(self.backbone.device).eval()
        metric, function = dense.metric(), Function(task, task)
        for batch in self._batches(rows):
            with self.backbone.kernels.exact():
                output = head(self.method.maps(self._trunk(table, batch), function))
            metric.update(output.cpu(), torch.from_numpy(images.targets(task, batch)))
        return metric.sums

    # -- trunk activations -------------------------------------------------------------------

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        size = self.settings.evaluation.batch_size
        rows = np.array(rows)  # a copy: what comes through the object store is read-only
        pace = Pace("features", len(rows))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
            pace.step(len(rows[start : start + size]))

    def _room(self, table: str, images: ImageTable) -> bool:
        """Whether trunk activations of a whole table are kept: while they fit the budget."""
        if table in self._trunks:
            self._trunks.move_to_end(table)
            return True
        tower = self.backbone.image
        shape = (len(images), tower.tokens, tower.trunk_width(self.method.first_blocks[0]))
        size = 4 * int(np.prod(shape))
        if size > self._budget:
            return False
        while (
            self._trunks and size + sum(4 * t.numel() for t in self._trunks.values()) > self._budget
        ):
            self._trunks.popitem(last=False)
        self._trunks[table] = torch.full(shape, float("nan"))
        return True

    def _trunk(self, table: str, rows: np.ndarray) -> Tensor:
        """Trunk activations of some rows."""
        images = ImageTable.open(table)
        if not self._room(table, images):
            return self.method.trunk(self.backbone.normalise(images.images(rows)))
        kept = self._trunks[table]
        missing = rows[torch.isnan(kept[rows, 0, 0]).numpy()]
        if len(missing):
            kept[missing] = self.method.trunk(self.backbone.normalise(images.images(missing))).cpu()
        return kept[rows].to(self.backbone.device)

    def facts(self) -> dict[str, object]:
        """What the driver needs to know of the backbone."""
        return {
            "name": self.settings.backbone.name,
            "sha256": self.backbone.digest(),
            "parameters": self.backbone.parameter_count(),
            "image_size": self.backbone.image_size,
            "scale": float(self.backbone.logit_scale),
        }


def parts_of(rows: np.ndarray) -> list[np.ndarray]:
    """Rows cut into the parts whose statistics are formed at once."""
    return [rows[start : start + PART] for start in range(0, len(rows), PART)]


def merged(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of a whole split from those of its parts, in their order."""
    sums, rows = parts[0]
    for more, others in parts[1:]:
        sums, rows = sums.merged(more), rows.merged(others)
    return sums, rows
