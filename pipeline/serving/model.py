"""The served model of one process: the generation that answers, and the one that is being prepared.

model = ServedModel("/data/runs/first", settings)
answers, milliseconds = model.classify(images, [Ask()] * len(images))
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.identifiers.background import (
    depths,
    find_background,
    load_background,
    read_run_background,
    signature_columns,
)
from pipeline.identifiers.signature import Background
from pipeline.methods.base import build_method, method_class
from pipeline.model.backbone import Backbone, load_backbone
from pipeline.model.kernels import Kernels, resolve_device
from pipeline.serving.answer import TEMPLATES, Reading, answer_batch
from pipeline.serving.asking import Answer, Ask
from pipeline.serving.canary import check
from pipeline.serving.consult import Doubt
from pipeline.serving.library import Library
from pipeline.serving.pointer import NOTHING, Pointer, Refused, read_pointer
from pipeline.serving.snapshot import Snapshot, build_snapshot
from pipeline.settings import ServingSettings, Settings
from pipeline.store import RunFolder

KEPT_VOCABULARIES = 256


class ServedModel:
    """Frozen CLIP, all groups of the current generation, and a way to the next one.

    `prepare` and `activate` may run beside `classify`, from another thread.

    Args:
        run_dir: the run folder; its `run.json` says what the model is.
        serving: limits and the canary.
        device: `auto`, `cpu` or `cuda`.
        follow: load the current generation at once.

    Raises:
        UserError: not a run, a method that is not served, or another backbone than the run's.
        Refused: the current generation cannot be loaded.
    """

    def __init__(
        self,
        run_dir: str,
        serving: ServingSettings,
        device: str = "auto",
        follow: bool = True,
    ) -> None:
        self.run = RunFolder.open(run_dir)
        self.serving = serving
        document = self.run.read()
        self.settings = run_settings(document)
        kernels = Kernels(**document["kernels"]) if document["kernels"] else Kernels()
        kernels = replace(kernels, device=resolve_device(device))
        self.backbone = load_backbone(self.settings.backbone, kernels.device, kernels)
        if self.backbone.digest() != document["backbone"]["sha256"]:
            raise UserError(
                f"backbone.name: '{self.settings.backbone.name}' has other weights than those"
                f" {self.run.folder.shown()} was learned with"
            )
        self.library = Library(self.run, self.backbone)
        self.background, self.reading = _look(self.run, self.settings, self.backbone)
        self._vocabularies: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._mutex = threading.Lock()
        self._prepared: Snapshot | None = None
        self._current = self._build(NOTHING)
        if follow:
            self.follow()

    @property
    def current(self) -> Snapshot:
        """The generation that answers."""
        return self._current

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """The run's attention kernel, for all threads of this process while it lasts."""
        with self.backbone.kernels.exact():
            yield

    # -- generations -------------------------------------------------------------------------

    def follow(self) -> Pointer:
        """Answer from the generation that `serving.json` names, until it names no newer one.

        Raises:
            Refused: it cannot be loaded, or fails the canary.
        """
        while (pointer := read_pointer(self.run)).generation > self._current.pointer.generation:
            if self._prepared is None or self._prepared.pointer != pointer:
                self.prepare(pointer)
            self.activate(pointer)
        return self._current.pointer

    def prepare(self, pointer: Pointer) -> dict[str, float]:
        """Load a generation beside the current one and put it to the canary.

        Returns:
            Largest change of a logit per domain.

        Raises:
            Refused: why it must not answer; nothing has changed.
        """
        with self._mutex, self.exact():
            self._prepared = None
            snapshot = self._build(pointer)
            changes = check(snapshot, self._current, self.serving.canary)
            self._prepared = snapshot
            both = [*self._current.tasks.values(), *snapshot.tasks.values()]
            self.library.keep([task.ref for task in both])
            return changes

    def activate(self, pointer: Pointer) -> Pointer:
        """Answer from the prepared generation from now on; returns the one that answers.

        Anything but exactly what was prepared is left to `follow`.
        """
        with self._mutex:
            prepared = self._prepared
            if prepared is not None and prepared.pointer == pointer:
                if pointer.generation > self._current.pointer.generation:
                    self._current = prepared
                self._prepared = None
        return self._current.pointer

    def _build(self, pointer: Pointer) -> Snapshot:
        try:
            return build_snapshot(
                pointer, self.library, self.backbone, self.settings, self.background
            )
        except FileNotFoundError:
            raise Refused(f"there is no manifest {pointer.manifest}") from None
        except (ValueError, LookupError, TypeError) as error:  # a group that does not fit the rest
            said = f"{type(error).__name__}: {error}"
            raise Refused(f"manifest {pointer.manifest} cannot be put together ({said})") from error

    def snapshot(self, manifest: int) -> Snapshot:
        """A manifest as it would answer, which here it does not.

        Raises:
            Refused: it cannot be loaded.
        """
        return self._build(Pointer(0, manifest, self.run.models.read(manifest).sha256))

    # -- requests ----------------------------------------------------------------------------

    def classify(
        self, images_BSSC: np.ndarray, asks: Sequence[Ask], doubts: list[Doubt] | None = None
    ) -> tuple[int, list[Answer], dict[str, float]]:
        """Generation, answers, and milliseconds of each part; for one thread at a time.

        Args:
            images_BSSC: uint8, of the backbone's size.
            asks: what is wanted for each image.
            doubts: takes the images on whose domain a second opinion is worth having.

        Raises:
            KeyError: a domain that the current generation has not learned.
        """
        snapshot = self._current
        for name in (name for ask in asks for name in ask.names):
            if name not in snapshot.tasks:
                raise KeyError(name)
        with self.exact():
            answers, spent = answer_batch(
                snapshot, self.reading, images_BSSC, asks, self._text, doubts
            )
        return snapshot.pointer.generation, answers, spent

    def _text(self, snapshot: Snapshot, function: str | None, labels: tuple[str, ...]) -> Tensor:
        """Class features of an open vocabulary; the last few hundred are kept."""
        task = None if function is None else snapshot.tasks[function]
        templates = TEMPLATES if task is None else tuple(task.card["templates"])
        key = (None if task is None else task.ref.sha256, labels, templates)
        if key not in self._vocabularies:
            if function is None:
                found = self.backbone.encode_classes(labels, templates)
            else:
                found = snapshot.method.class_features(labels, templates, function)
            self._vocabularies[key] = found
            if len(self._vocabularies) > KEPT_VOCABULARIES:
                self._vocabularies.popitem(last=False)
        self._vocabularies.move_to_end(key)
        return self._vocabularies[key]


def run_settings(document: dict[str, Any]) -> Settings:
    """The settings a run was learned with.

    Raises:
        UserError: its method cannot be served.
    """
    settings = validate(document["config"])
    method = method_class(settings.method.name)
    if not method.identifies:
        raise UserError(
            f"method.name={settings.method.name}: is not served, since it does not tell domains"
            " apart; learn the stream with method=trge"
        )
    return settings


def _look(run: RunFolder, settings: Settings, backbone: Backbone) -> tuple[Background, Reading]:
    """What signatures are compared against, and where they are read."""
    first = build_method(backbone, settings).first_blocks[0]
    image, which = backbone.image, settings.identifier.depths
    path = find_background(settings.backbone)
    if path is not None:
        columns = signature_columns(
            image.width, int(image.visual.output_dim), image.depth, which, first
        )
        background = load_background(path, columns)
    else:
        background = read_run_background(run)
    return background, Reading(depths(image.depth, which, first), which != "trunk")


def single_thread(threads: int) -> None:
    """Threads of torch for this process; 0 leaves all cores."""
    if threads:
        torch.set_num_threads(threads)
