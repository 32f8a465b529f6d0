"""The record of a task: everything that answering needs to know of it, and nothing derived.

Shapes: C classes, F embedding, n probe images, S side of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from archipelago.pipeline.closedform import CalibrationRows, Sums
from archipelago.pipeline.records.classes import ClassList, class_list

Arrays = dict[str, np.ndarray]
CARD = (
    "name",
    "classes",
    "templates",
    "digests",
    "counts",
    "kind",
    "temperature",
    "lambda_accuracy",
    "study",
    "description",
    "facts",
)


@dataclass(frozen=True, eq=False)
class Probe:
    """Stored training images (n, S, S, 3) with labels (n,) and the log-probabilities (n, C) that
    the task's own function gave them when it was learned."""

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def arrays(self) -> Arrays:
        """To be stored."""
        return {"images": self.images, "labels": self.labels, "scores": self.scores}


@dataclass(frozen=True, eq=False)
class TaskRecord:
    """One learned task.

    Attributes:
        name: of the task.
        classes: its class names, in the order of the labels.
        templates: sentences for its class names.
        digests: content digest of each split.
        counts: images of each split.
        kind: of a dense task; None for one with classes.
        temperature: divides the logits of its own function.
        lambda_accuracy: accuracy on its held-out fold, per lambda, before it was learned.
        study: what an identifier that looks noted while it was learned.
        description: what its images look like, in words.
        facts: what its method has to say of it, plain data.
        sums: counts, means and scatter of its training rows; None where it needs no identity.
        rows: calibration rows.
        text_CF: class features of frozen CLIP.
        own_CF: class features under its own function, where they differ.
        probe: the canary's yardstick; None for dense tasks, whose outputs are in `outputs`.
        outputs: a dense task's probe: images and what its head gave them.
        derived: what was worked out from this record, never stored.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    digests: Mapping[str, str]
    counts: Mapping[str, int]
    kind: str | None = None
    temperature: float = 1.0
    lambda_accuracy: list[float] | None = None
    study: Mapping[str, Any] | None = None
    description: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    sums: Sums | None = None
    rows: CalibrationRows | None = None
    text_CF: np.ndarray | None = None
    own_CF: np.ndarray | None = None
    probe: Probe | None = None
    outputs: Arrays = field(default_factory=dict)
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def listed(self) -> ClassList:
        """Its classes with their templates."""
        return class_list(self.classes, self.templates)

    def card(self) -> dict[str, Any]:
        """Its part of `task.json`."""
        return {key: getattr(self, key) for key in CARD}

    def identity(self) -> Arrays:
        """Its arrays of `identity.safetensors`."""
        arrays: Arrays = {}
        if self.sums is not None:
            arrays |= {f"sums/{key}": value for key, value in self.sums.arrays().items()}
        if self.rows is not None:
            arrays |= {f"rows/{key}": value for key, value in self.rows.arrays().items()}
        for key, value in (("text", self.text_CF), ("own", self.own_CF)):
            if value is not None:
                arrays[key] = value
        return arrays

    @property
    def numbers(self) -> int:
        """Stored numbers by which it is recognised, to be counted as parameters."""
        kept = [part.arrays().values() for part in (self.sums, self.rows) if part is not None]
        return sum(array.size for arrays in kept for array in arrays)

    @classmethod
    def load(cls, card: Mapping[str, Any], identity: Arrays, probe: Arrays) -> TaskRecord:
        """From its card and its stored arrays, without their prefix.

        Raises:
            KeyError, TypeError, ValueError: something is missing or does not fit.
        """
        plain = {key: card[key] for key in CARD}
        plain |= {key: tuple(plain[key]) for key in ("classes", "templates")}
        sums, rows = (_below(identity, part) for part in ("sums/", "rows/"))
        dense = card["kind"] is not None
        record = cls(
            **plain,
            sums=Sums.load(sums) if sums else None,
            rows=CalibrationRows.load(rows) if rows else None,
            text_CF=identity.get("text"),
            own_CF=identity.get("own"),
            probe=None if dense else Probe(*(probe[k] for k in ("images", "labels", "scores"))),
            outputs=probe if dense else {},
        )
        record._check()
        return record

    def _check(self) -> None:
        """Whatever is stored by class fits the class list; ValueError where it does not."""
        counts = {
            "class features": None if self.text_CF is None else len(self.text_CF),
            "class features of its own": None if self.own_CF is None else len(self.own_CF),
            "statistics": None if self.sums is None else len(self.sums.counts),
            "probe scores": None if self.probe is None else self.probe.scores.shape[-1],
        }
        for what, count in counts.items():
            if count is not None and count != len(self.classes):
                raise ValueError(
                    f"'{self.name}': {what} of {count} classes do not fit its {len(self.classes)}"
                )


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
