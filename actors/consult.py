"""A replica's way to the multimodal model: asks about unsure images, and never waits for long.

The pool is the one that learning uses (`actors/identify.py`); the publisher holds a lease on it
while the endpoint is up. A model that does not run in a pool is loaded here, at the first request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from archipelago.actors.identify import PooledScorer, in_pool, pool_name
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.scorer import Scorer, Scores, build_scorer
from archipelago.pipeline.learned.consult import ConsultRequest, ConsultResult, consult_results
from archipelago.pipeline.settings import ServingSettings, Settings

log = logging.getLogger("ray.serve.archipelago")

PATIENCE = 3  # times in a row without an answer, after which nobody is asked for a while
REST_S = 5.0


def consults(settings: Settings, serving: ServingSettings) -> bool:
    """Whether an endpoint of this run asks a multimodal model at all."""
    return serving.consult_s > 0 and isinstance(settings.identifier, MultimodalSettings)


class SecondOpinion:
    """Asks the model about images, within a deadline.

    Args:
        settings: the run's.
        deadline_s: the longest wait; a later answer is not used.
    """

    def __init__(self, settings: Settings, deadline_s: float) -> None:
        self._settings, self._deadline_s = settings, deadline_s
        self._scorer: Scorer | None = None
        self._finding: asyncio.Task[Scorer] | None = None
        self._busy = asyncio.Semaphore(max(1, settings.multimodal.concurrency))
        self._misses, self._rest_until = 0, 0.0

    async def __call__(
        self, images: np.ndarray, unsure: Sequence[ConsultRequest]
    ) -> list[ConsultResult] | None:
        """Which domain each image is from; None if there was no answer in time.

        Args:
            images: uint8 (n, S, S, 3), one a request.
            unsure: n images of one generation.
        """
        if time.monotonic() < self._rest_until:
            return None
        try:
            async with asyncio.timeout(self._deadline_s):
                scores = await self._ask(images, unsure[0].texts)
        except TimeoutError:
            scores = None
        except Exception as error:
            log.warning("the multimodal model is not asked: %s", " ".join(str(error).split()))
            self._scorer, scores = None, None
        if scores is None or np.isnan(scores).all():
            self._missed()
            return None
        self._misses = 0
        return consult_results(unsure, scores)

    async def _ask(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray | None:
        chosen, seed = self._settings.multimodal, self._settings.seed
        scorer = await self._find()
        if isinstance(scorer, PooledScorer):
            async with self._busy:
                found = await scorer.score_soon(
                    images, texts, chosen.scoring, seed, self._deadline_s
                )
            return None if found is None else found.values[:, :-1]
        # A thread cannot be called off: it keeps its place until it has ended, however late, so
        # that never more than so many are at work.
        await self._busy.acquire()
        call = asyncio.create_task(
            asyncio.to_thread(scorer.score, images, texts, chosen.scoring, seed)
        )
        call.add_done_callback(self._ended)
        answer = await asyncio.shield(call)
        return answer.values[:, :-1]

    def _ended(self, call: asyncio.Task[Scores]) -> None:
        self._busy.release()
        if not call.cancelled():
            call.exception()  # seen: whoever waited for it may have left

    async def _find(self) -> Scorer:
        """The model, looked for in a thread; the search goes on when a request gives up on it."""
        if self._scorer is None:
            if self._finding is None or self._finding.done():
                self._finding = asyncio.create_task(asyncio.to_thread(self._open))
            self._scorer = await asyncio.shield(self._finding)
        return self._scorer

    def _open(self) -> Scorer:
        identifier, cluster = self._settings.multimodal, self._settings.cluster.identify
        if not in_pool(self._settings):
            return build_scorer(identifier, 1)
        from ray import serve

        handle: Any = serve.get_app_handle(pool_name(identifier, cluster))
        return PooledScorer(handle, identifier.model, 1, identifier.timeout_s)

    def _missed(self) -> None:
        self._misses += 1
        if self._misses >= PATIENCE:
            self._misses, self._rest_until = 0, time.monotonic() + REST_S
