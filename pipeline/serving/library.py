"""Stored groups in memory, verified: read once, shared by all generations that name them.

Shapes: C classes, F embedding, n probe images, S side of an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import IntegrityError
from pipeline.identifiers import Signature
from pipeline.model.backbone import Backbone
from pipeline.serving.pointer import Refused
from pipeline.store import GroupRef, RunFolder
from pipeline.store.tensors import load

GROUP, IDENTITY, PROBE, TASK = (
    "group.safetensors",
    "identity.safetensors",
    "probe.safetensors",
    "task.json",
)
SIGNATURE = "signature/"


@dataclass(frozen=True)
class Probe:
    """Stored images (n, S, S, 3) with labels (n,) and the logits (n, C) they had when learned."""

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class LearnedTask:
    """One learned domain as it answers.

    Attributes:
        ref: its group, shared with the other domains of its stage.
        name: the domain.
        card: `task.json`, of a stage of several domains this one's part.
        tensors: `group.safetensors`.
        signature: what identifies it; None where the method needs none.
        probe: the canary's yardstick.
        own_CF: class features under its own function.
        frozen_CF: class features of frozen CLIP.
    """

    ref: GroupRef
    name: str
    card: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    signature: Signature | None
    probe: Probe
    own_CF: Tensor
    frozen_CF: Tensor

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return tuple(self.card["classes"])

    @property
    def temperature(self) -> float:
        """Divides the logits of its own function."""
        return float(self.card["calibration"]["temperature"])


class Library:
    """Reads groups of one run for one backbone."""

    def __init__(self, run: RunFolder, backbone: Backbone) -> None:
        self.run = run
        self.backbone = backbone
        self._books: dict[tuple[str, str], tuple[LearnedTask, ...]] = {}

    def get(self, ref: GroupRef) -> tuple[LearnedTask, ...]:
        """The domains of a group, read at its first use; every file is checked against its hash.

        Raises:
            Refused: a file is missing, altered, or not what it should be.
        """
        key = (ref.folder, ref.sha256)
        if key not in self._books:
            self._books[key] = self._read(ref)
        return self._books[key]

    def keep(self, refs: Iterable[GroupRef]) -> None:
        """Let go of all other groups."""
        wanted = {(ref.folder, ref.sha256) for ref in refs}
        self._books = {key: book for key, book in self._books.items() if key in wanted}

    def _read(self, ref: GroupRef) -> tuple[LearnedTask, ...]:
        groups = self.run.groups
        try:
            tensors = load(groups.read(ref, GROUP), ref.name)
            identity = load(groups.read(ref, IDENTITY), IDENTITY)
            probe = load(groups.read(ref, PROBE), PROBE)
            card = json.loads(groups.read(ref, TASK))
            check_kind(ref, card)
            return tuple(
                self._book(ref, part, tensors, identity, probe) for part in task_cards(card)
            )
        except IntegrityError as error:
            raise Refused(str(error)) from None
        except (KeyError, ValueError, TypeError) as error:
            words = " ".join(str(error).split())
            raise Refused(f"group '{ref.name}' is not readable: {words}") from None

    @torch.no_grad()
    def _book(
        self,
        ref: GroupRef,
        card: dict[str, Any],
        tensors: dict[str, Tensor],
        identity: dict[str, Tensor],
        probe: dict[str, Tensor],
    ) -> LearnedTask:
        task = card["name"]
        ending = f"/{task}" if task != ref.name else ""
        prefix = f"{SIGNATURE}{ending[1:]}/" if ending else SIGNATURE
        for name, tensor in {**tensors, "classes": identity[f"classes{ending}"]}.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise Refused(f"group '{ref.name}': {name} is not finite")
        arrays = {
            key.removeprefix(prefix): tensor.numpy()
            for key, tensor in identity.items()
            if key.startswith(prefix)
        }
        own = identity[f"classes{ending}"].float().to(self.backbone.device)
        frozen = self.backbone.encode_classes(card["classes"], card["templates"])
        if own.shape != frozen.shape:
            raise Refused(
                f"group '{ref.name}': class features {tuple(own.shape)} do not fit the backbone's"
                f" {tuple(frozen.shape)}"
            )
        side = self.backbone.image_size
        images, labels, logits = (
            probe[f"{key}{ending}"].numpy() for key in ("images", "labels", "logits")
        )
        if images.shape[1:] != (side, side, 3):
            raise Refused(
                f"group '{ref.name}': probe images {images.shape} do not fit a"
                f" backbone of {side} pixels"
            )
        return LearnedTask(
            ref,
            task,
            card,
            tensors,
            Signature.load(arrays) if arrays else None,
            Probe(images, labels, logits),
            own,
            frozen,
        )


def check_kind(ref: GroupRef, card: Mapping[str, Any]) -> None:
    """Only domains with classes are served.

    Raises:
        Refused: the group was learned for dense tasks.
    """
    dense = [part["name"] for part in task_cards(card) if part.get("kind")]
    if dense:
        raise Refused(
            f"group '{ref.name}' was learned for dense tasks ({', '.join(dense)}): they are"
            " measured, and only domains with classes are served"
        )


def task_cards(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A group's card once per domain that it was trained on, as if each stood alone."""
    if "tasks" not in card:
        return [dict(card)]
    several = ("calibration", "description")
    return [
        {**card, **part, **{key: card[key][part["name"]] for key in several}}
        for part in card["tasks"]
    ]
