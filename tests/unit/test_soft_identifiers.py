"""What a multimodal model says, where answers are soft: one more term, weighed by calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from archipelago.pipeline.identifiers.mllm import Mllm
from archipelago.pipeline.identifiers.scorer import Scores
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable
from tests.unit.test_mllm import IMAGES, Colours, N, _learner, _settings
from tests.unit.tiny_run import TASKS, World, learn_stream, make_world, run_settings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


class Noise(Colours):
    """Looks at nothing."""

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        scores = super().score(images, descriptions, scoring, seed)
        noise = np.random.default_rng(self.pairs).normal(size=scores.values.shape)
        return Scores(noise.astype(np.float32), 0)


class Expert(Colours):
    """Knows every picture of the world by heart."""

    def __init__(self, world: World) -> None:
        super().__init__()
        tables = [(d.name, ImageTable.open(t)) for d in world.domains for t in d.tables.values()]
        self.known = {
            image.tobytes(): name
            for name, table in tables
            for image in table.images(np.arange(len(table)))
        }

    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        return self.known[images[0].tobytes()]

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        names = [self.known[image.tobytes()] for image in images]
        right = np.array([[name == text for text in descriptions] + [False] for name in names])
        self.pairs += len(images) * len(descriptions)
        return Scores(right.astype(np.float32) * 3.0, 0)


@pytest.mark.parametrize("kind", ["expert", "noise"])
def test_where_answers_are_soft_the_model_counts_as_much_as_it_helps(
    world: World, tmp_path: Path, kind: str
) -> None:
    scorer = Expert(world) if kind == "expert" else Noise()
    method = {"name": "archipelago", "options": {"group": "off"}}
    chosen = _settings(world, "mllm").model_copy(
        update={"method": run_settings(world, method=method).method}
    )
    learner = _learner(world, RunFolder(tmp_path / "run"), chosen, scorer)
    records = learn_stream(learner)
    identifier = learner.state.identifier
    assert isinstance(identifier, Mllm) and identifier.soft
    asked = [record["work"]["calls"] for record in records]
    evidence = learner.evaluator.evidence(TASKS[1])
    whole, statistics = identifier.identify(evidence), identifier.alone.identify(evidence)
    if kind == "noise":
        assert identifier.rule.weight == 0.0 and asked == [0, 0, 0, 0]
        assert np.array_equal(whole.log_shares, statistics.log_shares)
    else:
        assert 0.0 < identifier.rule.weight <= 1.0 and asked[-1] == N * IMAGES
        truth = whole.options.index(TASKS[1])
        assert whole.log_shares[:, truth].mean() > statistics.log_shares[:, truth].mean()
    assert np.array_equal(whole.log_odds, statistics.log_odds), "novelty is for the statistics"
