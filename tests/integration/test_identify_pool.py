"""The pool of multimodal models on a real Serve: same answers, lost replicas, leases."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import ray
from ray import serve

from archipelago.actors.consult import SecondOpinion
from archipelago.actors.identify import IdentifierPool, PooledScorer
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers import Identification, ImageSource, ScoreCache
from archipelago.pipeline.identifiers.scorer import Scores, build_scorer
from archipelago.pipeline.learned.consult import ConsultRequest, ConsultResult
from archipelago.pipeline.settings import IdentifyPoolSettings, Settings
from tests.unit.tiny_clip import settings as tiny_settings
from tests.unit.tiny_mllm import save_mllm

pytestmark = pytest.mark.timeout(300)
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
TEXTS = ["grey noise", "a cat", "a map seen from above"]
LEASE_S = 2


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = str(save_mllm(tmp_path_factory.mktemp("pool") / "mllm"))
    settings = tiny_settings(identifier={"name": "mllm", "model": model, "batch_size": 4})
    pool = IdentifyPoolSettings(num_cpus=0.25, threads=1, lease_s=LEASE_S)
    cluster = settings.cluster.model_copy(update={"identify": pool})
    return settings.model_copy(update={"cluster": cluster})


@pytest.fixture(scope="module")
def pool(local_ray: str, chosen: Settings) -> Iterator[IdentifierPool]:
    with IdentifierPool(chosen) as pool:
        yield pool
    serve.shutdown()


def look(
    scorer: object,
    settings: MultimodalSettings,
    on_read: Callable[[int], None] = lambda first: None,
) -> tuple[np.ndarray, ScoreCache]:
    score_cache = ScoreCache(scorer, settings)  # type: ignore[arg-type]

    def read(at: np.ndarray) -> np.ndarray:
        on_read(int(at[0]))
        return IMAGES[at]

    return score_cache.scores(ImageSource(read), np.arange(len(IMAGES)), TEXTS), score_cache


def test_a_replica_killed_in_mid_run_changes_nothing(
    pool: IdentifierPool, chosen: Settings
) -> None:
    scorer = pool.scorer
    assert isinstance(scorer, PooledScorer)
    here = build_scorer(chosen.multimodal)
    assert scorer.model == here.model
    wanted, _ = look(here, chosen.multimodal)
    assert scorer.describe(IMAGES[:2], ["cat"], 0) == here.describe(IMAGES[:2], ["cat"], 0)
    facts = scorer._handle.facts.remote().result()
    killed = []

    def kill(first: int) -> None:
        """Half-way, while the other thread's request is being answered; else once more later."""
        if first >= len(IMAGES) // 2 and first % 16 == 0 and not scorer.retried:
            time.sleep(0.005)
            killed.append(scorer._handle.facts.remote().result()["pid"])
            os.kill(killed[-1], signal.SIGKILL)

    found, score_cache = look(scorer, chosen.multimodal, kill)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert score_cache.usage.fallbacks == 0 and score_cache.usage.scorings == len(IMAGES) * len(
        TEXTS
    )
    assert killed[0] == facts["pid"] != scorer._handle.facts.remote().result()["pid"], "replaced"
    assert scorer.retried > 0, "something was lost and asked again"


class Texts:
    """An identifier of which only the texts are read."""

    texts = tuple(TEXTS)

    def with_scores(
        self, found: Identification, rows: np.ndarray, scores: np.ndarray
    ) -> Identification:
        return dataclasses.replace(found, log_shares=scores)


NOTHING = Identification(tuple(TEXTS), np.zeros((1, 3)), np.zeros(1), np.zeros(1))


def likeliest(shares: ConsultResult) -> str:
    return max(shares, key=lambda pair: pair[1])[0]


def test_online_nobody_waits_longer_than_the_deadline(
    pool: IdentifierPool, chosen: Settings
) -> None:
    unsure = [ConsultRequest(row, Texts(), NOTHING) for row in range(4)]  # type: ignore[arg-type]
    images = IMAGES[:4]

    async def ask() -> None:
        patient = SecondOpinion(chosen, 30.0)
        told = await patient(images, unsure)
        wanted = pool.scorer.score(images, TEXTS, "likelihood", 0).values[:, :-1]
        assert told is not None
        assert [likeliest(word) for word in told] == [TEXTS[i] for i in wanted.argmax(axis=1)]
        found = [[share for _, share in word] for word in told]
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        hasty = SecondOpinion(chosen, 0.001)
        clock = time.monotonic()
        assert [await hasty(images, unsure) for _ in range(4)] == [None] * 4
        assert time.monotonic() - clock < 10.0, "not the 30 s of the patient one"
        assert time.monotonic() < hasty._rest_until, "a model that is late is left alone"
        elsewhere = chosen.multimodal.model_copy(update={"model": "never/started"})
        nobody = SecondOpinion(chosen.model_copy(update={"identifier": elsewhere}), 30.0)
        assert await nobody(images, unsure) is None

    asyncio.run(ask())


def test_a_model_in_this_process_is_never_asked_twice_at_once(chosen: Settings) -> None:
    """Its threads cannot be called off, so what is late must end before the next begins."""
    here = chosen.cluster.identify.model_copy(update={"max_replicas": 0})
    settings = chosen.model_copy(
        update={
            "cluster": chosen.cluster.model_copy(update={"identify": here}),
            "identifier": chosen.multimodal.model_copy(update={"concurrency": 1}),
        }
    )
    unsure = [ConsultRequest(0, Texts(), NOTHING)]  # type: ignore[arg-type]

    class Slow:
        remote, parallel, model = False, 1, "slow"
        begun, most, now = 0, 0, 0

        def score(self, images: np.ndarray, texts: object, scoring: str, seed: int) -> Scores:
            self.begun, self.now = self.begun + 1, self.now + 1
            self.most = max(self.most, self.now)
            time.sleep(0.2)
            self.now -= 1
            return Scores(np.eye(1, 4))

    slow = Slow()

    async def ask() -> None:
        second = SecondOpinion(settings, 0.05)
        second._scorer = slow  # type: ignore[assignment]
        assert [await second(IMAGES[:1], unsure) for _ in range(2)] == [None, None]
        await asyncio.sleep(0.3)
        second._deadline_s = 5.0
        told = await second(IMAGES[:1], unsure)
        assert told is not None and likeliest(told[0]) == TEXTS[0]

    asyncio.run(ask())
    assert (slow.begun, slow.most) == (2, 1), "the second one did not get its turn in time"


def test_jobs_share_a_pool_and_it_goes_with_the_last_lease(
    pool: IdentifierPool, chosen: Settings
) -> None:
    pid = pool.scorer._handle.facts.remote().result()["pid"]  # type: ignore[attr-defined]
    with IdentifierPool(chosen) as other:
        assert other.name == pool.name
        assert other.scorer._handle.facts.remote().result()["pid"] == pid  # type: ignore[attr-defined]
    bigger = chosen.cluster.identify.model_copy(update={"max_replicas": 2})
    cluster = chosen.cluster.model_copy(update={"identify": bigger})
    assert IdentifierPool(chosen.model_copy(update={"cluster": cluster})).name != pool.name
    time.sleep(2 * LEASE_S)
    assert pool.name in serve.status().applications, "a holder that lives keeps it"
    assert pool._lease is not None
    pool._lease._over.set()  # as if its process had been killed: no more signs of life
    deadline = time.monotonic() + 30
    while pool.name in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.2)
    assert pool.name not in serve.status().applications
    with pytest.raises(ValueError, match="-lease"):
        ray.get_actor(f"{pool.name}-lease", namespace="archipelago")
