"""Forward passes for everything that is not training: signature features and logits.

An engine holds frozen CLIP and the functions learned so far. It runs in the driver's process, or as
one of several actors (`actors/encoders.py`) with the same methods.

Shapes: n rows, L tokens, D width, F embedding, S signature features, C classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.dense import build, stored_heads
from pipeline.identifiers.background import depths, signature_columns
from pipeline.identifiers.features import DepthRecorder
from pipeline.methods.base import build_method
from pipeline.model.backbone import load_backbone
from pipeline.model.kernels import Kernels
from pipeline.settings import Settings
from pipeline.store import GroupRef, RunFolder
from pipeline.store.tensors import load
from pipeline.streams import DenseTable, ImageTable

GROUP_FILE = "group.safetensors"


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
        self.method = build_method(self.backbone, settings)
        self.run = RunFolder(spec.run, read_only=True)
        self.installed: dict[str, str] = {}
        self._heads: dict[str, dict[str, Tensor]] = {}
        self._classes: dict[tuple, Tensor] = {}
        self._trunks: OrderedDict[str, Tensor] = OrderedDict()
        self._budget = int(settings.training.cache_gib * 2**30)
        which = settings.identifier.depths
        self._depths = depths(self.backbone.image.depth, which, self.method.first_blocks[0])
        self._with_final = which != "trunk"

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
            tensors = load(self.run.groups.read(ref, GROUP_FILE), ref.name)
            self.method.install(ref.name, tensors)
            self._heads |= stored_heads(tensors)
            self.installed[ref.name] = ref.sha256

    @torch.no_grad()
    def features(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Signature features (n, S) of some rows, float32."""
        images = ImageTable.open(table)
        parts = [self.encode(images.images(batch)) for batch in self._batches(rows)]
        if not parts:
            return np.zeros((0, 0), dtype=np.float32)
        return np.concatenate(parts)

    @torch.no_grad()
    def encode(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Signature features (B, S) of uint8 images, float32."""
        with self.backbone.kernels.exact():
            return self._signature(self.backbone.normalise(images_BHWC)).cpu().numpy()

    def _signature(self, pixels: Tensor) -> Tensor:
        record = DepthRecorder(self._depths)
        x_BLD = self.method.trunk(pixels, record)
        final = self.method.frozen_features(x_BLD, record) if self._with_final else None
        return record.features(final)

    @torch.no_grad()
    def logits(
        self,
        table: str,
        rows: np.ndarray,
        function: str | None,
        classes: Sequence[str],
        templates: Sequence[str],
    ) -> np.ndarray:
        """Logits (n, C) of some rows under one function, float32."""
        u_CF = self._class_features(tuple(classes), tuple(templates), function)
        parts = []
        for batch in self._batches(rows):
            with self.backbone.kernels.exact():
                x_BLD = self._trunk(table, batch)
                if function is None:
                    v_BF = self.method.frozen_features(x_BLD)
                else:
                    v_BF = self.method.image_features(x_BLD, [function] * len(batch))
                parts.append((self.backbone.logit_scale * v_BF @ u_CF.T).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, len(classes)), np.float32)

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
        metric = dense.metric()
        for batch in self._batches(rows):
            with self.backbone.kernels.exact():
                output = head(self.method.maps(self._trunk(table, batch), task))
            metric.update(output.cpu(), torch.from_numpy(images.targets(task, batch)))
        return metric.sums

    def _class_features(
        self, classes: tuple[str, ...], templates: tuple[str, ...], function: str | None
    ) -> Tensor:
        key = (classes, templates, function)
        if key not in self._classes:
            with self.backbone.kernels.exact():
                if function is None:
                    self._classes[key] = self.backbone.encode_classes(classes, templates)
                else:
                    self._classes[key] = self.method.class_features(classes, templates, function)
        return self._classes[key]

    def _batches(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.settings.evaluation.batch_size
        rows = np.array(rows)  # a copy: what comes through the object store is read-only
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _trunk(self, table: str, rows: np.ndarray) -> Tensor:
        """Trunk activations of some rows, kept for whole tables while they fit the budget."""
        kept = self._trunks.get(table)
        if kept is None:
            images = ImageTable.open(table)
            tower = self.backbone.image
            size = 4 * len(images) * tower.tokens * tower.width
            if size > self._budget:
                return self.method.trunk(self.backbone.normalise(images.images(rows)))
            self._make_room(size)
            kept = torch.full((len(images), tower.tokens, tower.width), float("nan"))
            self._trunks[table] = kept
        self._trunks.move_to_end(table)
        missing = rows[torch.isnan(kept[rows, 0, 0]).numpy()]
        if len(missing):
            pixels = self.backbone.normalise(ImageTable.open(table).images(missing))
            kept[missing] = self.method.trunk(pixels).cpu()
        return kept[rows].to(self.backbone.device)

    def facts(self) -> dict[str, object]:
        """What the driver needs to know of the backbone."""
        return {
            "name": self.settings.backbone.name,
            "sha256": self.backbone.digest(),
            "parameters": self.backbone.parameter_count(),
            "image_size": self.backbone.image_size,
            "columns": signature_columns(
                self.backbone.image.width,
                int(self.backbone.image.visual.output_dim),
                self.backbone.image.depth,
                self.settings.identifier.depths,
                self.method.first_blocks[0],
            ),
        }

    def _make_room(self, size: int) -> None:
        while (
            self._trunks and size + sum(4 * t.numel() for t in self._trunks.values()) > self._budget
        ):
            self._trunks.popitem(last=False)
