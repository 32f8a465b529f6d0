"""The contract of an identifier, and the registry.

An identifier looks at one image at a time - never at a batch vote, never at the candidate classes -
and says how likely each learned task is, and how new the image looks. It knows a *set* of records:
what it says is a pure function of that set, whatever the order in which tasks were learned and
whatever was forgotten since. Ties are broken by name.

Shapes: B images, T learned tasks in the order of their names, K compact features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.identifier_settings import IdentifierSettings, MultimodalSettings, kinds
from archipelago.pipeline.identifiers.description import Description, Sample
from archipelago.pipeline.identifiers.score_cache import ImageSource, ScoreCache
from archipelago.pipeline.records import TaskRecord
from archipelago.pipeline.registry import Registry

NONE = "none"
CERTAIN = 1e6  # log odds of somebody who knows
identifiers: Registry[type[Identifier]] = Registry(
    "archipelago.pipeline.identifiers", "identifier.name"
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an identifier may look at.

    Attributes:
        compact: (B, K) compact features.
        task: the true task's name; only the oracle reads it.
        images: the B images themselves, read when asked for; for multimodal identifiers.
    """

    compact: np.ndarray
    task: str | None = None
    images: ImageSource | None = None


@dataclass(frozen=True, eq=False)
class Identification:
    """What is held of B images; candidates have no part in it.

    Attributes:
        options: the T learned tasks, by name.
        log_shares: (B, T) log p(t|x): how likely each task is, were it one of them.
        novelty: (B,) r(x), the larger, the less it looks like any learned task.
        log_odds: (B,) calibrated, for being of no learned task: `a (r - r_0)`.
    """

    options: tuple[str, ...]
    log_shares: np.ndarray
    novelty: np.ndarray
    log_odds: np.ndarray

    @property
    def closed(self) -> np.ndarray:
        """(B,) the likeliest learned task, seen or not; -1 where nothing was learned."""
        if not self.options:
            return np.full(len(self.novelty), -1)
        return self.log_shares.argmax(axis=1)

    @property
    def unseen(self) -> np.ndarray:
        """(B,) probability of being of no learned task, whatever is asked."""
        return sigmoid(self.log_odds)

    def rows(self, at: Sequence[int] | np.ndarray) -> Identification:
        """Of some of the images."""
        where = np.asarray(at, dtype=np.int64)
        return Identification(
            self.options, self.log_shares[where], self.novelty[where], self.log_odds[where]
        )


class Identifier(ABC):
    """One way to recognise tasks; a file in this folder.

    Attributes:
        name: what `identifier=` selects.
        Settings: type of its section; `MultimodalSettings` for one that shows the images themselves
            to a multimodal model.
        asks: the ways of asking that a comparison of identifiers tries; None = it asks no model.

    Args:
        settings: its section of the configuration.
        basis: what compact features are made with.
        score_cache: asks a multimodal model, for multimodal identifiers.
        soft: what it says is weighed, not followed: a multimodal model's word then counts as much
            as it helps on calibration rows, and for nothing where it does not.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[IdentifierSettings]] = IdentifierSettings
    asks: ClassVar[tuple[str | None, ...]] = (None,)

    def __init__(
        self,
        settings: IdentifierSettings,
        basis: Basis,
        score_cache: ScoreCache | None = None,
        soft: bool = False,
    ) -> None:
        self.settings = settings
        self.basis = basis
        self.score_cache = score_cache
        self.soft = soft

    @classmethod
    def asks_model(cls) -> bool:
        """Whether it shows images to a multimodal model."""
        return issubclass(cls.Settings, MultimodalSettings)

    @abstractmethod
    def know(self, records: Mapping[str, TaskRecord]) -> None:
        """Know exactly these tasks from now on."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks, by name."""

    @abstractmethod
    def identify(self, evidence: Evidence) -> Identification:
        """Decide for each image on its own."""

    @property
    def alone(self) -> Identifier:
        """The part that answers without a multimodal model."""
        return self

    def refusal_threshold(self, share: float) -> float | None:
        """The novelty that `share` of the learned tasks' images exceed; None where unknown."""
        return None

    # -- for multimodal identifiers ----------------------------------------------------------

    def describe(self, sample: Sample) -> Description | None:
        """Put a new task into words; None for others. May run ahead."""
        return None

    def study(self, record: TaskRecord, images: ImageSource) -> dict[str, Any] | None:
        """What to note of a new task, known already, that its statistics do not hold.

        Args:
            record: of the new task.
            images: the images of its calibration rows.
        """
        return None

    @property
    def texts(self) -> tuple[str, ...]:
        """The learned tasks in words."""
        return ()

    def to_consult(self, found: Identification) -> np.ndarray:
        """Positions of the images about which a multimodal model is worth asking.

        Args:
            found: what `alone` says of them.
        """
        return np.zeros(0, np.int64)

    def with_scores(
        self, found: Identification, rows: np.ndarray, scores: np.ndarray
    ) -> Identification:
        """What `alone` says, with the multimodal model's scores of some images.

        Args:
            found: what `alone` says of B images.
            rows: (n,) positions that the model was asked about.
            scores: (n, T) its scores for the learned tasks; a row of NaN was not answered.
        """
        return found


def register(identifier: type[Identifier]) -> type[Identifier]:
    """Class decorator: make an identifier selectable by its name, with its own settings."""
    kinds.register(identifier.name)(identifier.Settings)
    return identifiers.register(identifier.name)(identifier)


def nothing_known(count: int) -> Identification:
    """Of `count` images, before anything was learned: all of them are new."""
    return Identification((), np.zeros((count, 0)), np.zeros(count), np.full(count, CERTAIN))


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """`1 / (1 + exp(-z))` without overflow."""
    return np.exp(-np.logaddexp(0.0, -log_odds))


def build_identifier(
    settings: IdentifierSettings,
    basis: Basis,
    score_cache: ScoreCache | None = None,
    soft: bool = False,
) -> Identifier:
    """The identifier that the settings name, knowing nothing; arguments as for `Identifier`.

    Raises:
        UserError: unknown name.
    """
    return identifiers.get(settings.name)(settings, basis, score_cache, soft)
