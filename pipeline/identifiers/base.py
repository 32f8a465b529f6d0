"""The contract of an identifier, and the registry.

An identifier looks at one image at a time - never at a batch vote, never at the candidate classes -
and chooses among the tasks learned so far and "none of these".

Shapes: B images, T learned tasks, F signature features.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.errors import UserError
from pipeline.identifiers.description import Description, Sample
from pipeline.identifiers.looker import Looker, Shown
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
        shown: the B images themselves, read when asked for; for identifiers that look.
    """

    features: np.ndarray
    task: str | None = None
    shown: Shown | None = None


@dataclass(frozen=True)
class Study:
    """What an identifier that looks gets of a new task beyond its signature.

    Attributes:
        held_out: the held-out fold with its images.
        description: what the task's images look like, in words.
    """

    held_out: Evidence
    description: Description | None = None


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

    def rows(self, at: Sequence[int]) -> Identification:
        """Of some of the images."""
        few = {
            name: getattr(self, name)[list(at)]
            for name in ("probabilities", "shares", "chosen", "unseen_score")
        }
        return Identification(self.options, **few)


class Identifier(ABC):
    """One way to recognise tasks; a file in this folder."""

    name: ClassVar[str]
    looks: ClassVar[bool] = False  # at the images themselves, with a multimodal model

    def __init__(
        self,
        settings: IdentifierSettings,
        background: Background,
        acceptance: float = 0.98,
        looker: Looker | None = None,
    ) -> None:
        self.settings = settings
        self.background = background
        self.acceptance = acceptance
        self.looker = looker

    @property
    def alone(self) -> Identifier:
        """The part that answers without a multimodal model."""
        return self

    def prepare(self, signature: Signature, features: np.ndarray) -> Signature:
        """Add what this identifier stores beyond the common statistics."""
        return signature

    @property
    def threshold(self) -> float | None:
        """Unseen scores above it mean none; None where there is no such score."""
        return None

    def describe(self, sample: Sample) -> Description | None:
        """Put a new task into words; None for identifiers that do not look. May run ahead."""
        return None

    @abstractmethod
    def learn(
        self, task: str, signature: Signature, held_out: np.ndarray, study: Study | None = None
    ) -> dict:
        """Add a task; returns its calibration, plain data that `restore` takes.

        Args:
            task: a new name.
            signature: statistics of the training fold.
            held_out: (B, F) features of the held-out fold.
            study: its images and the task's description, for identifiers that look.
        """

    @abstractmethod
    def restore(
        self,
        task: str,
        signature: Signature,
        calibration: dict,
        description: Description | None = None,
    ) -> None:
        """Add a task that was learned before."""

    @abstractmethod
    def forget(self, task: str) -> None:
        """Remove a task; the others are as if it had never been learned."""

    @abstractmethod
    def identify(self, evidence: Evidence) -> Identification:
        """Decide for each image on its own."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The learned tasks in words, for identifiers that look."""
        return ()

    def doubted(self, found: Identification) -> np.ndarray:
        """Positions of the images about which a multimodal model is worth asking.

        Args:
            found: what `alone` says of them.
        """
        return np.zeros(0, np.int64)

    def settled(
        self, found: Identification, rows: np.ndarray, scores: np.ndarray
    ) -> Identification:
        """What `alone` says, with the multimodal model's scores of some images.

        Args:
            found: what `alone` says of B images.
            rows: (n,) positions that the model was asked about.
            scores: (n, T) its scores for the learned tasks; a row of NaN was not answered.
        """
        return found

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


def identifier_class(name: str) -> type[Identifier]:
    """The identifier of that name.

    Raises:
        UserError: unknown name.
    """
    known = identifiers()
    if name not in known:
        raise UserError(f"identifier.name: '{name}' is unknown; choose one of {', '.join(known)}")
    return known[name]


def build_identifier(
    settings: IdentifierSettings,
    background: Background,
    acceptance: float = 0.98,
    looker: Looker | None = None,
) -> Identifier:
    """The identifier that the settings name.

    Args:
        settings: its section of the configuration.
        background: what signatures are compared against.
        acceptance: share of seen images to accept; sets the threshold of "none".
        looker: the multimodal model, for identifiers that look (`Identifier.looks`).

    Raises:
        UserError: unknown name.
    """
    return identifier_class(settings.name)(settings, background, acceptance, looker)
