"""Recognise tasks by their statistics: no training, no data of earlier tasks, exact to forget.

How an image is scored against the learned tasks (`identifier.evidence`):

- `both`: discriminants of task means and of class means together, each with a weight of its own;
- `E`: of task means only, for unlike domains; `J`: of class means only, for cuts of one domain;
- `mean`: cosine to the task's mean (the paper's prototype);
- `class_means`: log-mean-exp of cosines to class means, so that many classes are no advantage.

Novelty, calibration and all formulas: `pipeline/closedform/knowledge.py` (method 7.5).

Shapes: B images, T tasks, K compact features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archipelago.pipeline.closedform import Basis, Knowledge, KnownTask
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.identifiers.base import (
    Evidence,
    Identification,
    Identifier,
    nothing_known,
    register,
)
from archipelago.pipeline.identifiers.score_cache import ScoreCache
from archipelago.pipeline.records import TaskRecord

COSINE_TEMPERATURE = 0.02  # sharpness of the shares that follow from cosines
COSINES = ("mean", "class_means")


@register
class Prototype(Identifier):
    """The statistics of all learned tasks; see the module's text."""

    name = "prototype"

    def __init__(
        self,
        settings: IdentifierSettings,
        basis: Basis,
        score_cache: ScoreCache | None = None,
        soft: bool = False,
    ) -> None:
        super().__init__(settings, basis, score_cache, soft)
        self._knowledge: Knowledge | None = None
        self._records: dict[str, TaskRecord] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks, by name."""
        return tuple(sorted(self._records))

    @property
    def knowledge(self) -> Knowledge:
        """What follows from the set of records.

        Raises:
            LookupError: nothing is known yet.
        """
        if self._knowledge is None:
            raise LookupError("nothing is learned yet")
        return self._knowledge

    def know(self, records: Mapping[str, TaskRecord]) -> None:
        """Sum up these tasks, whatever was known before."""
        self._records = dict(records)
        parts = {}
        for name, record in records.items():
            if record.sums is None or record.rows is None:
                raise ValueError(f"task '{name}' has no statistics: nothing could recognise it")
            parts[name] = KnownTask(record.sums, record.rows)
        wanted = self.settings.evidence
        self._knowledge = None
        if parts:
            self._knowledge = Knowledge(
                parts,
                self.basis,
                evidence=wanted if wanted in ("E", "J") else "both",
                novelty=self.settings.novelty,
                shrinkage=self.settings.shrinkage,
            )

    def identify(self, evidence: Evidence) -> Identification:
        """Score each image against every task, and say how new it is."""
        known, compact = self._knowledge, evidence.compact
        if known is None:
            return nothing_known(len(compact))
        shares, novelty = known.judge(compact)
        if self.settings.evidence in COSINES:
            shares = self._cosine_shares(compact.astype(np.float64))
        return Identification(
            known.names, shares, novelty, known.slope * (novelty - known.midpoint)
        )

    def refusal_threshold(self, share: float) -> float | None:
        """See `Knowledge.refusal_threshold`."""
        return None if self._knowledge is None else self._knowledge.refusal_threshold(share)

    def _cosine_shares(self, compact_BK: np.ndarray) -> np.ndarray:
        """(B, T): compact features are centred by the background already."""
        unit = _unit(compact_BK)
        scores = []
        for name in self.tasks:
            sums = self._records[name].sums
            assert sums is not None
            if self.settings.evidence == "mean":
                scores.append(unit @ _unit(sums.mean[None])[0] / COSINE_TEMPERATURE)
            else:
                cosines = unit @ _unit(sums.means[sums.known]).T / COSINE_TEMPERATURE
                scores.append(np.logaddexp.reduce(cosines, axis=1) - np.log(cosines.shape[1]))
        z = np.stack(scores, axis=1)
        return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
