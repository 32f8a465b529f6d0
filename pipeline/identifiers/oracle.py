"""The oracle: told the true task. The upper bound of every identifier, never for serving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.identifiers.base import Evidence, Identification, Identifier, Study, register
from pipeline.identifiers.description import Description
from pipeline.identifiers.looker import Looker
from pipeline.identifiers.signature import Background, Signature
from pipeline.settings import IdentifierSettings


@register
class Oracle(Identifier):
    """Answers with `Evidence.task` if it was learned, else with none."""

    name = "oracle"

    def __init__(
        self,
        settings: IdentifierSettings,
        background: Background,
        acceptance: float = 0.98,
        looker: Looker | None = None,
    ) -> None:
        super().__init__(settings, background, acceptance, looker)
        self._tasks: dict[str, None] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks."""
        return tuple(self._tasks)

    def learn(
        self, task: str, signature: Signature, held_out: np.ndarray, study: Study | None = None
    ) -> dict:
        """Remember the name."""
        self._tasks[task] = None
        return {}

    def restore(
        self,
        task: str,
        signature: Signature,
        calibration: dict,
        description: Description | None = None,
    ) -> None:
        """Remember the name."""
        self._tasks[task] = None

    def forget(self, task: str) -> None:
        """Forget the name."""
        del self._tasks[task]

    def identify(self, evidence: Evidence) -> Identification:
        """Certain of the given task."""
        return certain(evidence.task, self.tasks, len(evidence.features))


def certain(task: str | None, options: Sequence[str], count: int) -> Identification:
    """The identification of `count` images by someone who knows: none where it is no option."""
    index = options.index(task) if task in options else -1
    probabilities = np.zeros((count, len(options) + 1))
    probabilities[:, index] = 1.0
    shares = np.full((count, len(options)), 1.0 / max(1, len(options)))
    if index >= 0:
        shares = probabilities[:, :-1]
    unseen = np.full(count, float(index < 0))
    return Identification(tuple(options), probabilities, shares, np.full(count, index), unseen)
