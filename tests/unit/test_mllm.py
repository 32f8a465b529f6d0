"""Identifiers that look, on whole runs: what is asked, kept, counted and decided.

The model here reads mean colours: a description is the mean colour of its samples, and an image
fits it the better, the nearer its own mean is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archipelago.actors import contest
from archipelago.jobs import identify
from archipelago.pipeline.evaluation.identifier_comparison import (
    IdentifierComparison,
)
from archipelago.pipeline.evaluation.records import read_records
from archipelago.pipeline.evaluation.report import build_report, write_report
from archipelago.pipeline.identifier_settings import MultimodalSettings, own_keys
from archipelago.pipeline.identifiers import Evidence, ImageSource, ScoreCache, identifiers
from archipelago.pipeline.identifiers.calibration import ConsultRule
from archipelago.pipeline.identifiers.cascade import Cascade
from archipelago.pipeline.identifiers.choices import Choices
from archipelago.pipeline.identifiers.description import Description
from archipelago.pipeline.identifiers.position_bias import PositionTally, bias_in_words
from archipelago.pipeline.identifiers.scorer import Scores
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.learned.consult import consult_requests, consult_results
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.learner import Learner
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.settings import MethodSettings, Settings
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import (
    TASKS,
    World,
    group_hashes,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)

N, IMAGES = len(TASKS), 24  # tasks, test images of each


class Colours:
    """A scorer that can be told to fail."""

    model, parallel, remote = "colours@0", 2, True

    def __init__(self, broken: float = 0.0) -> None:
        self.broken = broken
        self.pairs = 0
        self.seen: list[tuple[int, int]] = []

    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        return " ".join(f"{value:.1f}" for value in images.mean(axis=(0, 1, 2)))

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        self.seen.append((len(images), len(descriptions)))
        self.pairs += len(images) * len(descriptions)
        wanted = np.array([[float(v) for v in text.split()] for text in descriptions])
        means = images.mean(axis=(1, 2))
        near = -0.1 * np.abs(means[:, None] - wanted[None]).sum(axis=2)
        values = np.concatenate([near, np.zeros((len(images), 1))], axis=1).astype(np.float32)
        if scoring != "likelihood":
            values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
        bad = (means.sum(axis=1) * 7919 % 1.0) < self.broken
        values[bad] = np.nan
        return Scores(values, int(bad.sum()) if scoring == "generate" else 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def _settings(world: World, name: str, **more: Any) -> Settings:
    identifier = {"name": name, "model": "colours", "batch_size": 7, "calibration_images": 8} | more
    return run_settings(world, **own_keys({"identifier": identifier}), training={"steps": 2})


def _learner(world: World, run: RunFolder, settings: Settings, scorer: Colours | None) -> Learner:
    open_run(world, run, settings)
    if scorer is None:
        return make_learner(world, run, settings)
    score_cache = ScoreCache(
        scorer, settings.multimodal, settings.seed, run.folder.child("identifier")
    )
    return make_learner(world, run, settings, score_cache=score_cache)


def _learn(
    world: World, path: Path, name: str, scorer: Colours | None = None, **more: Any
) -> RunFolder:
    run = RunFolder(path)
    learn_stream(_learner(world, run, _settings(world, name, **more), scorer))
    return run


@pytest.fixture(scope="module")
def scorer() -> Colours:
    return Colours()


@pytest.fixture(scope="module")
def run(world: World, scorer: Colours, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return _learn(world, tmp_path_factory.mktemp("runs") / "mllm", "mllm", scorer)


def _bias(by_option: Sequence[float], first: float) -> dict[str, Any]:
    """What is found of a model that likes options by themselves, and the first letter besides."""

    class Letters(Colours):
        def score(
            self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
        ) -> Scores:
            choices = Choices.of(images, descriptions, seed)
            places = np.array(by_option)[choices.order]
            places[:, 0] += first
            return Scores(choices.by_option(np.log(places / places.sum(axis=1, keepdims=True))))

    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    settings = MultimodalSettings(name="mllm", scoring="choice")
    score_cache = ScoreCache(Letters(), settings, seed=1)
    score_cache.scores(ImageSource(lambda at: images[at]), np.arange(64), ["a", "b", "c"])
    found = score_cache.usage.asdict()["position_bias"]
    assert found["images"] == 64 and sum(found["by_place"]) == pytest.approx(100, abs=0.1)
    return found


def test_a_model_that_likes_the_first_letter_is_found_out() -> None:
    fair = _bias([0.7, 0.15, 0.1, 0.05], first=0.0)
    assert fair["largest"] == 0.0, "what it thinks of the options is no bias"
    blind = _bias([1e-9] * 4, first=1.0)
    assert blind["by_place"][0] == pytest.approx(100) and blind["largest"] > 60
    assert blind["deviation"][0] == blind["largest"] and max(blind["deviation"][1:]) < 0
    slight = _bias([0.7, 0.15, 0.1, 0.05], first=0.1)
    assert 3 < slight["largest"] < 12 and slight["deviation"][0] == slight["largest"]
    assert "position bias" in bias_in_words(slight) and "none" in bias_in_words(slight)
    assert PositionTally.empty(2).bias() is None, "one description stands nowhere else"


def test_every_pair_is_scored_once_in_all_stages(run: RunFolder, scorer: Colours) -> None:
    """N tasks over N stages: N x images scorings, not N x N x images."""
    report = build_report(run)["identifier"]
    # With one task there is nothing to choose: the first stage asks nothing.
    assert report["calls"] == (N - 1) * N * IMAGES
    assert report["scorings"] == N * (N * IMAGES)
    assert report["fallbacks"] == report["parse_failures"] == 0
    held = sum(e["work"]["scorings"] for e in run.journal.events() if e["event"] == "described")
    assert scorer.pairs == report["scorings"] + held, "what is reported is what was done"
    assert held < 0.5 * report["scorings"]


def test_the_report_says_who_identified_and_how_well(run: RunFolder) -> None:
    report = write_report(run, pictures=False)["identifier"]
    assert (report["backend"], report["model"], report["scoring"]) == (
        "mllm",
        "colours@0",
        "likelihood",
    )
    assert list(report["accuracy_per_task"]) == list(TASKS)
    assert np.mean(list(report["accuracy_per_task"].values())) > 35, "four tasks: chance is 25"
    assert report["images_per_second"] > 0


def test_task_files_hold_the_description_and_where_it_comes_from(run: RunFolder) -> None:
    tasks = [task for ref in run.groups.list() for task in read_card(run, ref)["tasks"]]
    for task in tasks:
        description = task["description"]
        assert set(description) == {"text", "prompt_version", "model", "seed", "samples", "by"}
        assert (description["by"], description["model"]) == ("mllm", "colours@0")
        assert len(description["samples"]) == 24 == len(set(description["samples"]))
    assert len({task["description"]["text"] for task in tasks}) == N
    traces = run.folder.read_json(f"identifier/traces/001-{TASKS[1]}.json")
    assert {trace["kind"] for trace in traces} == {"describe", "likelihood"}
    assert {trace["task"] for trace in traces} <= set(TASKS)


def test_an_interrupted_run_asks_nothing_twice(
    world: World, run: RunFolder, tmp_path: Path
) -> None:
    first, again = Colours(), Colours()
    other = RunFolder(tmp_path / "run")
    settings = _settings(world, "mllm")
    learn_stream(_learner(world, other, settings, first), stages=2)
    learn_stream(_learner(world, other, settings, again))
    whole = [read_records(r).matrix("mtil_identified") for r in (run, other)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(*whole)
    assert group_hashes(other) == group_hashes(run)
    held = sum(e["work"]["scorings"] for e in other.journal.events() if e["event"] == "described")
    assert first.pairs + again.pairs == N * N * IMAGES + held
    silent = Colours()
    learner = _learner(world, other, settings, silent)
    learner.restore()
    learner.evaluator.stage(N - 1, learner.state)
    assert silent.pairs == 0, "all scores are in the run folder"


def test_choice_asks_per_set_of_options_and_failures_fall_back(
    world: World, tmp_path: Path
) -> None:
    scorer = Colours(broken=0.4)
    run = _learn(world, tmp_path / "run", "mllm", scorer, scoring="generate")
    report = build_report(run)["identifier"]
    assert report["scorings"] == report["calls"] == (N - 1) * N * IMAGES
    assert 0.2 * report["calls"] < report["fallbacks"] == report["parse_failures"]
    assert report["fallbacks"] < 0.6 * report["calls"]
    bias = report["position_bias"]
    answered = N * IMAGES - read_records(run).newest["work"]["fallbacks"]  # type: ignore
    assert bias["images"] == answered and len(bias["by_place"]) == N + 1
    plain = _learn(world, tmp_path / "plain", "prototype")
    dead = _learn(world, tmp_path / "dead", "mllm", Colours(broken=1.1), scoring="generate")
    matrices = [read_records(r).matrix("mtil_identified") for r in (plain, dead)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(*matrices, "without answers it is the signature's")


def test_the_cascade_asks_few_and_is_not_worse(
    world: World, run: RunFolder, tmp_path: Path
) -> None:
    scorer = Colours()
    cascade = _learn(world, tmp_path / "run", "cascade", scorer, share=0.3)
    plain = _learn(world, tmp_path / "plain", "prototype")
    found = {
        name: build_report(r)["identifier"]
        for name, r in (("cascade", cascade), ("mllm", run), ("prototype", plain))
    }
    assert found["cascade"]["calls"] <= 0.3 * N * N * IMAGES
    best = max(found["mllm"]["closed_accuracy"], found["prototype"]["closed_accuracy"])
    assert found["cascade"]["closed_accuracy"] >= best - 2.1, "one image in 48 is noise"
    assert found["prototype"]["calls"] == 0 and found["prototype"]["model"] is None


def test_words_by_hand_are_used_and_recorded(world: World, tmp_path: Path) -> None:
    hand = {TASKS[1]: "1 2\n 3"}
    run = _learn(world, tmp_path / "run", "mllm", Colours(), descriptions=hand)
    told = {
        task["name"]: task["description"]
        for ref in run.groups.list()
        for task in read_card(run, ref)["tasks"]
    }
    description = Description.load(told[TASKS[1]])
    assert description is not None and (description.by, description.text) == ("hand", "1 2 3")
    assert description.samples == () and told[TASKS[0]]["by"] == "mllm"


@pytest.mark.parametrize("name", [n for n, i in identifiers.known().items() if i.asks_model()])
def test_each_image_is_decided_alone_and_forgetting_is_exact(
    name: str, world: World, run: RunFolder, tmp_path: Path
) -> None:
    settings = _settings(world, name, share=1.0)
    first = _learner(world, RunFolder(tmp_path / "a"), settings, Colours())
    learn_stream(first)
    identifier, evidence = first.state.identifier, first.evaluator.evidence(TASKS[2])
    assert identifier is not None and evidence.images is not None
    whole, read = identifier.identify(evidence), evidence.images.read
    for row in (0, 5):
        shown = ImageSource(lambda at, row=row: read(at + row))  # unknown to the memory
        alone = identifier.identify(Evidence(evidence.compact[row : row + 1], TASKS[2], shown))
        np.testing.assert_allclose(alone.log_shares[0], whole.log_shares[row], atol=1e-4)
        np.testing.assert_allclose(alone.log_odds[0], whole.log_odds[row], atol=1e-4)
    # Online the model is asked beside the pass; how new an image is, is not its to say.
    if isinstance(identifier, Cascade):
        fitted, identifier.rule = identifier.rule, ConsultRule(2.0, 0.7)  # asks about all
    inside = identifier.identify(evidence)
    found = identifier.alone.identify(Evidence(evidence.compact))
    unsure = consult_requests(identifier, found, np.arange(len(found.novelty)))
    rows = [request.row for request in unsure]
    if not isinstance(identifier, Cascade):
        assert rows == list(range(len(found.novelty)))
    else:
        assert rows and set(rows) == set(np.flatnonzero(found.unseen <= 0.5).tolist())
    scores = Colours().score(read(np.array(rows)), unsure[0].texts, "likelihood", 0).values
    told = consult_results(unsure, np.concatenate([scores[:-1, :-1], np.full((1, N), np.nan)]))
    for row, shares in zip(rows[:-1], told, strict=False):
        assert [task for task, _ in shares] == list(inside.options)
        np.testing.assert_allclose(
            [share for _, share in shares], inside.log_shares[row], atol=1e-5
        )
    unasked = [share for _, share in told[-1]]
    np.testing.assert_allclose(np.exp(unasked), np.exp(found.log_shares[rows[-1]]), atol=1e-5)
    if isinstance(identifier, Cascade):
        identifier.rule = fitted
    rest = {task: r for task, r in first.state.records.items() if task != TASKS[1]}
    identifier.know(rest)
    without = identifier.identify(evidence)
    identifier.know(first.state.records)
    identifier.know(dict(reversed(rest.items())))
    again = identifier.identify(evidence)
    assert np.array_equal(again.log_shares, without.log_shares)
    assert np.array_equal(again.log_odds, without.log_odds)
    assert without.options == tuple(sorted(rest))


def test_identifiers_side_by_side_are_what_runs_with_them_are(
    world: World, run: RunFolder, tmp_path: Path
) -> None:
    """`jobs/identify.py` learns identifiers anew: it must find what a run with them found."""
    settings = _settings(world, "mllm")
    engine = Engine(EngineSpec(settings, run.uri, Kernels()))
    with run.lock():
        comparison = IdentifierComparison(
            run,
            settings,
            world.domains,
            engine,
            engine.basis,
            engine.backbone.logit_scale,
            Colours(),
        )
        assert comparison.read() == list(TASKS)
        rows = {
            " ".join(filter(None, (variant.name, variant.scoring))): comparison.row(variant)
            for variant in contest.variants()
        }
    assert list(rows)[:3] == ["cascade likelihood", "mllm likelihood", "mllm choice"]
    report = build_report(run)
    looked = rows["mllm likelihood"]
    assert looked.last == pytest.approx(report["last"], abs=1e-3)
    assert looked.transfer == pytest.approx(report["transfer"], abs=1e-3)
    assert looked.calls == report["identifier"]["calls"]
    assert looked.scorings == 0, "the run knew all of these scores already"
    assert rows["oracle"].closed == 100 and rows["oracle"].last == pytest.approx(
        report["last_oracle"], abs=1e-3
    )
    assert rows["prototype"].calls == 0 and rows["mllm choice"].scorings == looked.calls
    assert rows["prototype"].auroc == looked.auroc, "the signature decides about none"
    bias = rows["mllm choice"].extra["position_bias"]
    assert len(bias["by_place"]) == N + 1 and bias["images"] >= N * IMAGES
    (line,) = contest.remarks(rows["mllm choice"])
    assert f"position bias {bias['largest']:.1f} points" in line
    cascade = rows["cascade likelihood"]
    assert cascade.calls_share <= 30 and cascade.images_per_second is not None
    points = comparison.curve
    assert points[0]["accuracy"] == pytest.approx(rows["prototype"].closed)
    assert [point["calls"] for point in points][-1] == 100
    found = list(rows.values())
    assert contest.recognised(found, list(TASKS), "colours").row_count == len(TASKS) + 2
    assert contest.consequences(found).row_count == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split=test"], "run_dir: must be given"),
        (["run_dir=/nowhere"], "/nowhere"),
        (["run_dir={run}", "split=train"], "split=train"),
        (["run_dir={run}", "training.steps=3"], "training.steps: unknown here"),
        (["run_dir={run}", "identifier.scoring=loudly"], "identifier.scoring"),
    ],
)
def test_the_job_refuses_what_it_cannot_do(
    run: RunFolder, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert identify.main([word.format(run=run.uri) for word in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("identify: ") and said in line


def test_without_calibration_rows_nothing_is_scored(tmp_path: Path) -> None:
    """All images belong together: none says how well the model is to be believed."""
    world = make_world(tmp_path, TASKS[:2], group_pattern="^train")
    scorer, run = Colours(), RunFolder(tmp_path / "run")
    chosen = _settings(world, "mllm").model_copy(
        update={"method": MethodSettings(name="archipelago", options={"group": "off"})}
    )
    learn_stream(_learner(world, run, chosen, scorer))
    tasks = LearnedModel.open(run.uri).tasks
    assert len(tasks) == 2 and all(record.study is None for record in tasks.values())
