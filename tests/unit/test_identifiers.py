"""Identifiers know a set of records: decisions, novelty, the oracle; no order, no batch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from archipelago.pipeline.closedform import CalibrationRows, Sums
from archipelago.pipeline.config import load, validate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.handbook import options
from archipelago.pipeline.identifier_settings import IdentifierSettings, for_identifier, kinds
from archipelago.pipeline.identifiers import (
    Evidence,
    Identification,
    Identifier,
    build_identifier,
    identifiers,
)
from archipelago.pipeline.identifiers.base import CERTAIN, register, sigmoid
from archipelago.pipeline.identifiers.basis import depths, task_distance
from archipelago.pipeline.identifiers.prototype import Prototype
from archipelago.pipeline.records import TaskRecord
from tests.unit.tiny_closedform import WIDTH, basis, data, rows_of

EVIDENCE = ["both", "E", "J", "mean", "class_means"]
TASKS = ("a", "b", "c", "d")
FRESH = ("y", "z")
PER_CLASS, CLASSES = 40, 3
BASIS = basis()


def draw(name: str, count: int = PER_CLASS) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a task; more than `PER_CLASS` a class give images to test on."""
    return data(name, [count] * CLASSES, apart=1.5)


def record(name: str, features: np.ndarray, labels: np.ndarray, classes: int) -> TaskRecord:
    sums, rows = Sums.of(features, labels, classes), rows_of(features, labels)
    names = tuple(f"{name} {c}" for c in range(classes))
    return TaskRecord(name, names, ("{}",), {}, {}, sums=sums, rows=rows)


def split(name: str) -> tuple[TaskRecord, np.ndarray]:
    """A task's record, and features of images that it was not learned from."""
    features, labels = draw(name, 2 * PER_CLASS)
    half = len(labels) // 2
    return record(name, features[:half], labels[:half], CLASSES), features[half:]


RECORDS = {name: split(name)[0] for name in TASKS}
IMAGES = {name: split(name)[1] for name in (*TASKS, *FRESH)}


def identifier(evidence: str = "both", known: Mapping[str, TaskRecord] = RECORDS) -> Identifier:
    settings = IdentifierSettings(name="prototype", evidence=evidence, width=WIDTH)
    found = build_identifier(settings, BASIS)
    found.know(known)
    return found


def same(a: Identification, b: Identification) -> bool:
    """Equal to the bit."""
    arrays = ("log_shares", "novelty", "log_odds")
    return a.options == b.options and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_separated_tasks_are_told_apart(evidence: str) -> None:
    known = identifier(evidence)
    assert known.tasks == TASKS
    for number, task in enumerate(TASKS):
        found = known.identify(Evidence(IMAGES[task]))
        assert (found.closed == number).mean() > 0.95
        assert found.options == TASKS and found.log_shares.shape == (120, 4)
        np.testing.assert_allclose(np.exp(found.log_shares).sum(axis=1), 1.0)
        assert (found.unseen <= 0.5).mean() > 0.8
    fresh = np.concatenate([known.identify(Evidence(IMAGES[t])).unseen for t in FRESH])
    assert (fresh > 0.5).mean() > 0.7


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_only_the_set_of_records_counts(evidence: str) -> None:
    """Order of learning, what was known before and what was forgotten: all the same bits."""
    images = Evidence(np.concatenate(list(IMAGES.values())))
    for order in itertools.islice(itertools.permutations("abcd"), 0, 24, 5):
        other = identifier(evidence, {name: RECORDS[name] for name in order})
        assert same(other.identify(images), identifier(evidence).identify(images))
    walked, never = identifier(evidence, {}), identifier(evidence, {})
    for known in ("b", "ba", "bac", "cdab", "dca"):
        walked.know({name: RECORDS[name] for name in known})
    never.know({name: RECORDS[name] for name in "acd"})
    assert walked.tasks == ("a", "c", "d")
    assert same(walked.identify(images), never.identify(images))
    moved = identifier(evidence).identify(images)
    assert not np.array_equal(moved.novelty, never.identify(images).novelty)


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_an_image_is_identified_on_its_own(evidence: str) -> None:
    known = identifier(evidence)
    features = np.concatenate([x[:20] for x in IMAGES.values()])
    whole = known.identify(Evidence(features))
    for row in range(0, len(features), 7):
        alone = known.identify(Evidence(features[row : row + 1]))
        assert alone.closed[0] == whole.closed[row]
        np.testing.assert_allclose(alone.log_shares[0], whole.log_shares[row], atol=1e-9)
        np.testing.assert_allclose(alone.novelty[0], whole.novelty[row], atol=1e-9)
    order = np.random.default_rng(0).permutation(len(features))
    shuffled = known.identify(Evidence(features[order]))
    assert np.array_equal(shuffled.closed, whole.closed[order])
    part = whole.rows(order[:5])
    assert part.options == TASKS and np.array_equal(part.log_odds, whole.log_odds[order[:5]])


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_ties_are_broken_by_name(evidence: str) -> None:
    """Two tasks of the same images: the first by name has them, whichever was learned first."""
    features, labels = draw("a")
    twins = {name: record(name, features, labels, CLASSES) for name in ("q", "p")}
    found = identifier(evidence, twins).identify(Evidence(features))
    assert found.options == ("p", "q")
    np.testing.assert_allclose(found.log_shares, np.log(0.5), atol=1e-9)
    assert np.abs(found.log_shares[:, 0] - found.log_shares[:, 1]).max() == 0.0
    assert (found.closed == 0).all()


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_a_share_of_the_learned_images_may_be_refused(share: float) -> None:
    known = identifier()
    threshold = known.refusal_threshold(share)
    assert threshold is not None
    seen = np.concatenate([known.identify(Evidence(IMAGES[t])).novelty for t in TASKS])
    assert (seen > threshold).mean() == pytest.approx(share, abs=0.05)
    assert identifier(known={}).refusal_threshold(share) is None


def test_confidence_rises_with_novelty() -> None:
    found = identifier().identify(Evidence(np.concatenate(list(IMAGES.values()))))
    order = np.argsort(found.novelty)
    assert (np.diff(found.log_odds[order]) >= 0).all()
    np.testing.assert_allclose(found.unseen, 1 / (1 + np.exp(-found.log_odds)))
    assert found.unseen[order[0]] < 0.1 and found.unseen[order[-1]] > 0.9
    assert sigmoid(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0], "no overflow"


def test_many_classes_are_no_advantage() -> None:
    """Log-mean-exp: a mirrored task whose classes come ten times over draws mirrored shares."""
    few, labels = draw("a", 20)
    copies = np.concatenate([labels + CLASSES * copy for copy in range(10)])
    known = identifier(
        "class_means",
        {
            "few": record("few", few, labels, CLASSES),
            "many": record("many", -np.tile(few, (10, 1)), copies, 10 * CLASSES),
        },
    )
    probe = np.random.default_rng(0).normal(size=(200, WIDTH)).astype(np.float32)
    shares = known.identify(Evidence(probe)).log_shares[:, 0]
    mirrored = known.identify(Evidence(-probe)).log_shares[:, 1]
    np.testing.assert_allclose(mirrored, shares, atol=1e-6)
    assert np.exp(shares).std() > 0.1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("counts", [(1, 1, 1), (1,), (0, 5, 1), (40, 40, 40)])
def test_few_images_are_enough_for_an_answer(
    evidence: str, tasks: int, counts: tuple[int, ...]
) -> None:
    known = {}
    for name in TASKS[:tasks]:
        features, labels = data(name, counts, apart=1.5)
        known[name] = record(name, features, labels, len(counts))
    found = identifier(evidence, known).identify(Evidence(np.concatenate(list(IMAGES.values()))))
    for array in (found.log_shares, found.novelty, found.log_odds):
        assert np.isfinite(array).all()
    np.testing.assert_allclose(np.exp(found.log_shares).sum(axis=1), 1.0)


@pytest.mark.parametrize("name", identifiers.known())
def test_nothing_learned_is_new_for_sure(name: str) -> None:
    found = build_identifier(kinds.get(name)(name=name), BASIS)
    for _ in range(2):
        said = found.alone.identify(Evidence(IMAGES["a"][:5]))
        assert said.options == found.tasks == () and said.closed.tolist() == [-1] * 5
        assert said.log_shares.shape == (5, 0) and (said.log_odds == CERTAIN).all()
        assert (said.unseen == 1.0).all()
        found.know({})


def test_an_identifier_is_one_file_here_and_one_in_conf() -> None:
    assert set(identifiers.known()) == set(options("identifier"))
    with pytest.raises(UserError, match=r"identifier\.name=psychic: unknown; choose one of casc"):
        build_identifier(IdentifierSettings(name="psychic"), BASIS)


@pytest.mark.parametrize("name", identifiers.known())
def test_settings_for_another_identifier_keep_what_both_have(name: str) -> None:
    for other, kind in kinds.known().items():
        found = for_identifier(kinds.get(name)(name=name, width=7), other)
        assert type(found) is kind and (found.name, found.width) == (other, 7)
    asking = kinds.get("mllm")(name="mllm", samples=3)
    again = for_identifier(for_identifier(asking, "cascade", share=0.5), name).model_dump()
    assert again.get("samples", 3) == 3 and again.get("share", 0.5) == 0.5
    assert ("samples" in again) == identifiers.get(name).asks_model()


def test_a_new_identifier_brings_its_own_settings() -> None:
    class Tempo(IdentifierSettings):
        beats: int = 4

    class Mine(Prototype):
        name = "mine"
        Settings = Tempo

    register(Mine)
    try:
        chosen = run_settings({"name": "mine", "beats": 3})
        assert isinstance(chosen, Tempo) and chosen.beats == 3
        with pytest.raises(UserError, match=r"^identifier\.beats belongs to identifier=mine"):
            run_settings({"name": "oracle", "beats": 3})
    finally:
        del kinds._known["mine"], identifiers._known["mine"]


def run_settings(section: dict[str, Any]) -> IdentifierSettings:
    """The section as a run's settings have it."""
    return validate({**load().model_dump(mode="json"), "identifier": section}).identifier


def test_a_record_without_statistics_is_refused() -> None:
    bare = TaskRecord("a", ("x",), ("{}",), {}, {})
    with pytest.raises(ValueError, match="task 'a' has no statistics"):
        identifier(known={"a": bare})


def test_the_oracle_knows() -> None:
    oracle = build_identifier(IdentifierSettings(name="oracle"), BASIS)
    oracle.know({name: RECORDS[name] for name in "ba"})
    assert oracle.tasks == ("a", "b") and oracle.refusal_threshold(0.1) is None
    found = oracle.identify(Evidence(np.zeros((3, 2)), "b"))
    assert found.closed.tolist() == [1, 1, 1] and found.unseen.tolist() == [0.0] * 3
    assert np.exp(found.log_shares).tolist() == [[0.0, 1.0]] * 3
    strange = oracle.identify(Evidence(np.zeros((3, 2)), "unseen"))
    assert strange.unseen.tolist() == [1.0] * 3
    assert not np.exp(strange.log_shares).any(), "of an unseen task no group has a say"


# -- the basis -----------------------------------------------------------------------------------


def test_distances_are_whitened_cosines_of_means() -> None:
    a, b, c = (RECORDS[name].sums for name in "abc")
    assert a is not None and b is not None and c is not None
    inverse = np.linalg.inv(BASIS.target)

    def cosine(x: Sums, y: Sums) -> float:
        dots = [u.mean @ inverse @ v.mean for u, v in ((x, y), (x, x), (y, y))]
        return 1.0 - dots[0] / np.sqrt(dots[1] * dots[2])

    assert task_distance(a, a, BASIS) == pytest.approx(0.0, abs=1e-12)
    for x, y in ((a, b), (b, a), (a, c)):
        assert task_distance(x, y, BASIS) == pytest.approx(cosine(x, y), abs=1e-9)
    nothing = Sums(np.zeros(1), np.zeros((1, WIDTH)), np.zeros_like(a.scatter))
    assert task_distance(a, nothing, BASIS) == 1.0, "a mean at the background's is near to nobody"


def test_depths_and_their_place_in_the_trunk() -> None:
    assert depths(12, "all", 6) == (3, 6, 9)
    assert depths(12, "trunk", 6) == (3, 6)
    assert depths(12, "final", 6) == ()
    assert depths(12, "all", 0) == (3, 6, 9)
    with pytest.raises(
        UserError, match=r"identifier\.depths=trunk.*experts\.first_block \(now 0\)"
    ):
        depths(12, "trunk", 0)


def test_a_stored_record_decides_alike() -> None:
    """What is stored of a task decides as what was learned did."""
    stored = {}
    for name, one in RECORDS.items():
        arrays = one.identity()
        sums, rows = Sums.load(_below(arrays, "sums/")), _below(arrays, "rows/")
        plain = {"sums": sums, "rows": CalibrationRows.load(rows)}
        stored[name] = TaskRecord(name, one.classes, one.templates, {}, {}, **plain)
    images = Evidence(np.concatenate(list(IMAGES.values())))
    assert same(identifier(known=stored).identify(images), identifier().identify(images))


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
