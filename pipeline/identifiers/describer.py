"""Puts tasks into words, the next one while the current one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifiers.base import Identifier
from archipelago.pipeline.identifiers.description import Description, Sample
from archipelago.pipeline.identifiers.scorer import ScorerError
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams import ImageTable, PreparedDomain, stratified_fold


def sample_of(domain: PreparedDomain, settings: Settings) -> Sample:
    """A few images of a task's training fold, chosen by the seed; none of the held-out fold."""
    table = ImageTable.open(domain.tables["train"])
    rows, _ = stratified_fold(
        table.labels, settings.stream.held_out, settings.seed, domain.name, table.groups
    )
    order = np.random.default_rng(settings.seed).permutation(rows)
    chosen = np.sort(order[: settings.multimodal.samples])
    return Sample(domain.name, domain.classes, table.images(chosen), settings.seed)


class Describer:
    """Descriptions of a stream's tasks, each written once.

    Args:
        identifier: writes them, if there is one and it looks at images.
        settings: of the run.
        sample: picks the images of a task that are shown.
    """

    def __init__(
        self,
        identifier: Identifier | None,
        settings: Settings,
        sample: Callable[[PreparedDomain, Settings], Sample] = sample_of,
    ) -> None:
        self.identifier = identifier
        self._settings = settings
        self._sample = sample
        self._begun: dict[str, Future[Description | None]] = {}
        score_cache = None if identifier is None else identifier.score_cache
        ahead = score_cache is not None and score_cache.scorer.remote
        self._pool = ThreadPoolExecutor(1, "describe") if ahead else None

    def begin(self, *domains: PreparedDomain) -> None:
        """Have these tasks described, if that does not take time from whoever calls."""
        for domain in domains:
            if self._pool is not None and domain.name not in self._begun:
                self._begun[domain.name] = self._pool.submit(self._write, domain)

    def description(self, domain: PreparedDomain) -> Description | None:
        """The description of a task, as soon as it is there; None if this identifier needs none.

        Raises:
            UserError: the model does not answer.
        """
        if self.identifier is None or not self.identifier.asks_model():
            return None
        begun = self._begun.pop(domain.name, None)
        return self._write(domain) if begun is None else begun.result()

    def _write(self, domain: PreparedDomain) -> Description | None:
        try:
            assert self.identifier is not None
            return self.identifier.describe(self._sample(domain, self._settings))
        except ScorerError as error:
            raise UserError(
                f"identifier.model={self._settings.multimodal.model}: cannot describe"
                f" '{domain.name}' ({error}); the same command tries again, or write it by hand in"
                f" identifier.descriptions.{domain.name}"
            ) from error
