"""One generation as it answers: an immutable value, swapped as a whole.

Shapes: U candidates (every class of every learned domain), F embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.evaluator import largest_lambda
from pipeline.identifiers import Description, Evidence, Identifier, build_identifier
from pipeline.identifiers.signature import Background
from pipeline.methods.base import Method, build_method
from pipeline.model.backbone import Backbone
from pipeline.model.fusion import unseen_weight
from pipeline.serving.library import LearnedTask, Library
from pipeline.serving.pointer import Pointer, Refused
from pipeline.settings import Settings
from pipeline.store import GroupRef


@dataclass(frozen=True)
class Snapshot:
    """The model of one generation; nothing in it changes once it is built.

    Attributes:
        pointer: generation and manifest.
        tasks: learned domains by name, in the order they were learned.
        method: all functions, installed.
        identifier: recognises the domains by their signatures.
        whole: the run's identifier, which says whom to ask a multimodal model about.
        weight: lambda of unseen images.
    """

    pointer: Pointer
    tasks: Mapping[str, LearnedTask]
    method: Method
    identifier: Identifier
    whole: Identifier
    weight: float

    @cached_property
    def labels(self) -> list[str]:
        """All class names that were learned, each once."""
        return list(dict.fromkeys(label for t in self.tasks.values() for label in t.classes))

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Per domain, where its classes are in `labels`."""
        place = {label: index for index, label in enumerate(self.labels)}
        return {n: np.array([place[c] for c in t.classes]) for n, t in self.tasks.items()}

    @cached_property
    def all_columns(self) -> np.ndarray:
        """Where the candidates of `candidates_UF` are in `labels`, (U,)."""
        return np.concatenate([self.columns[name] for name in self.tasks])

    @cached_property
    def candidates_UF(self) -> Tensor:
        """Frozen class features of every class of every domain."""
        return torch.cat([task.frozen_CF for task in self.tasks.values()])


def build_snapshot(
    pointer: Pointer,
    library: Library,
    backbone: Backbone,
    settings: Settings,
    background: Background,
) -> Snapshot:
    """Assemble the generation that `pointer` names, apart from any that answers already.

    Raises:
        Refused: a manifest or group is altered, not finite, or does not fit the backbone.
    """
    refs: tuple[GroupRef, ...] = ()
    if pointer.manifest:
        manifest = library.run.models.read(pointer.manifest)
        if manifest.sha256 != pointer.sha256:
            raise Refused(f"manifest {pointer.manifest} is not the one that was published")
        refs = manifest.groups
    stages = [library.get(ref) for ref in refs]
    tasks = {task.name: task for stage in stages for task in stage}
    method = build_method(backbone, settings)
    identifier = build_identifier(
        settings.identifier, background, settings.method.unseen.acceptance
    )
    for (first, *_), ref in zip(stages, refs, strict=True):
        try:
            method.install(ref.name, first.tensors)
        except (ValueError, KeyError) as error:
            raise Refused(" ".join(str(error).split())) from None
    for name, task in tasks.items():
        if task.signature is None:
            raise Refused(f"group '{name}' has no signature: nothing could recognise its images")
        if task.signature.means.shape[1] != len(background.mean):
            raise Refused(f"group '{name}': its signature belongs to another backbone")
        told = Description.load(task.card["description"])
        identifier.restore(name, task.signature, task.card["calibration"]["identifier"], told)
    identifier.alone.identify(
        Evidence(np.zeros((1, len(background.mean)), np.float32))
    )  # solve it now
    curves = [task.card["calibration"]["lambda_accuracy"] for task in tasks.values()]
    unseen = settings.method.unseen
    weight = 0.0
    if method.fuses:
        largest = largest_lambda(unseen.lambda_max, curves)
        weight = unseen_weight(len(tasks), largest, unseen.lambda_steps)
    snapshot = Snapshot(pointer, tasks, method, identifier.alone, identifier, weight)
    if tasks:
        _ = snapshot.candidates_UF, snapshot.all_columns
    return snapshot
