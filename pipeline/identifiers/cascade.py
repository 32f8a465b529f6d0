"""The statistics decide; the multimodal model is asked where they are unsure.

Unsure is a margin between the two likeliest tasks below a limit. Limit and weight of the model's
answer come from calibration rows: at most a configured share of images is asked about, and a model
that does not help gets weight 0.
"""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.identifiers.base import Identification, register
from archipelago.pipeline.identifiers.calibration import fit_consult_rule, floored, margins_of
from archipelago.pipeline.identifiers.mllm import Mllm


@register
class Cascade(Mllm):
    """Statistics first, model under a margin."""

    name = "cascade"
    asks = ("likelihood",)

    def _rows(self, margins: np.ndarray) -> np.ndarray:
        """The least sure rows: the only ones that may ever be asked about."""
        share = int(np.ceil(self.settings.share * len(margins)))
        count = min(share, self.settings.calibration_images)
        unsure = np.argsort(margins, kind="stable")[:share]
        return np.sort(unsure[np.unique(np.linspace(0, share - 1, count).astype(np.int64))])

    def _fit(self) -> None:
        super()._fit()
        self.rule = fit_consult_rule(
            list(self._folds.values()), self.calibration, self.settings.share
        )

    def to_consult(self, found: Identification) -> np.ndarray:
        """Unsure images; of one that looks new, nobody asks which task it is."""
        unsure = margins_of(floored(found.log_shares)) < self.rule.margin
        return np.flatnonzero(unsure & (found.unseen <= 0.5))
