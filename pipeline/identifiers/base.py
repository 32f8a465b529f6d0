"""The contract of an identifier, and the registry.

An identifier looks at one image at a time - never at a batch vote, never at the candidate classes -
and chooses among the tasks learned so far and "none of these".

Shapes: B images, T learned tasks, F signature features.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.errors import UserError
from pipeline.identifiers.signature import Background, Signature
from pipeline.settings import IdentifierSettings

NONE = "none"
_IDENTIFIERS: dict[str, type[Identifier]] = {}


@dataclass(frozen=True)
class Evidence:
    """What an identifier may look at.

    Attributes:
        features: (B, F) signature features.
        task: the true task's name; only the oracle reads it.
        images: reads the B images as uint8 (B, S, S, 3) when called; for identifiers that look.
    """

    features: np.ndarray
    task: str | None = None
    images: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class Identification:
    """One decision per image.

    Attributes:
        options: the T learned tasks, in the order of learning; `none` is implied.
        probabilities: (B, T + 1) calibrated, the last column is `none`.
        shares: (B, T) how likely each task is if it is one of them.
        chosen: (B,) index of the chosen task, -1 = none.
        unseen_score: (B,) the larger, the less it looks like any learned task.
    """

    options: tuple[str, ...]
    probabilities: np.ndarray
    shares: np.ndarray
    chosen: np.ndarray
    unseen_score: np.ndarray

    @property
    def closed(self) -> np.ndarray:
        """(B,) the likeliest learned task, whether accepted or not."""
        return self.shares.argmax(axis=1)


class Identifier(ABC):
    """One way to recognise tasks; a file in this folder."""

    name: ClassVar[str]

    def __init__(
        self, settings: IdentifierSettings, background: Background, acceptance: float = 0.98
    ) -> None:
        self.settings = settings
        self.background = background
        self.acceptance = acceptance

    def prepare(self, signature: Signature, features: np.ndarray) -> Signature:
        """Add what this identifier stores beyond the common statistics."""
        return signature

    @property
    def threshold(self) -> float | None:
        """Unseen scores above it mean none; None where there is no such score."""
        return None

    @abstractmethod
    def learn(self, task: str, signature: Signature, held_out: np.ndarray) -> dict:
        """Add a task; returns its calibration, plain data that `restore` takes.

        Args:
            task: a new name.
            signature: statistics of the training fold.
            held_out: (B, F) features of the held-out fold.
        """

    @abstractmethod
    def restore(self, task: str, signature: Signature, calibration: dict) -> None:
        """Add a task that was learned before."""

    @abstractmethod
    def forget(self, task: str) -> None:
        """Remove a task; the others are as if it had never been learned."""

    @abstractmethod
    def identify(self, evidence: Evidence) -> Identification:
        """Decide for each image on its own."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks."""

    def numbers(self) -> int:
        """Stored numbers, to be counted as parameters."""
        return 0


def register(identifier: type[Identifier]) -> type[Identifier]:
    """Class decorator: make an identifier selectable by its name."""
    _IDENTIFIERS[identifier.name] = identifier
    return identifier


def identifiers() -> dict[str, type[Identifier]]:
    """All identifiers by name; every module in this folder is imported once."""
    package = importlib.import_module("pipeline.identifiers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"pipeline.identifiers.{module.name}")
    return dict(sorted(_IDENTIFIERS.items()))


def build_identifier(
    settings: IdentifierSettings, background: Background, acceptance: float = 0.98
) -> Identifier:
    """The identifier that the settings name; `acceptance` of seen images sets its threshold.

    Raises:
        UserError: unknown name.
    """
    known = identifiers()
    if settings.name not in known:
        raise UserError(
            f"identifier.name: '{settings.name}' is unknown; choose one of {', '.join(known)}"
        )
    return known[settings.name](settings, background, acceptance)
