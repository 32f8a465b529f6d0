"""The oracle: told the true task. The upper bound of every identifier, never for serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.identifiers.base import (
    CERTAIN,
    Evidence,
    Identification,
    Identifier,
    nothing_known,
    register,
)
from archipelago.pipeline.identifiers.score_cache import ScoreCache
from archipelago.pipeline.records import TaskRecord


@register
class Oracle(Identifier):
    """Certain of `Evidence.task` if it was learned, else certain that it is none of the tasks."""

    name = "oracle"

    def __init__(
        self,
        settings: IdentifierSettings,
        basis: Basis,
        score_cache: ScoreCache | None = None,
        soft: bool = False,
    ) -> None:
        super().__init__(settings, basis, score_cache, soft)
        self._tasks: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks, by name."""
        return self._tasks

    def know(self, records: Mapping[str, TaskRecord]) -> None:
        """Remember the names."""
        self._tasks = tuple(sorted(records))

    def identify(self, evidence: Evidence) -> Identification:
        """Certain of the given task."""
        return certain(evidence.task, self._tasks, len(evidence.compact))


def certain(task: str | None, options: Sequence[str], count: int) -> Identification:
    """The identification of `count` images by someone who knows.

    Whoever knows that an image is of no learned task knows of none that would be nearer than
    another: every share is 0, and no group has a say.
    """
    if not options:
        return nothing_known(count)
    log_shares = np.full((count, len(options)), -np.inf)
    known = task in options
    if known:
        log_shares[:, list(options).index(str(task))] = 0.0
    novelty = np.full(count, 0.0 if known else 1.0)
    return Identification(
        tuple(options), log_shares, novelty, np.full(count, -CERTAIN if known else CERTAIN)
    )
