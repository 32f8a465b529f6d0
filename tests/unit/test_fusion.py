"""Images of no learned domain: frozen CLIP fused with the likeliest groups, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from archipelago.pipeline.closedform import make_basis
from archipelago.pipeline.identifiers import Identification
from archipelago.pipeline.learned.state import LAMBDAS, State, build_state, fusion_weight
from archipelago.pipeline.methods import Function, View
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import ClassList, GroupRecord, TaskRecord, class_list
from archipelago.pipeline.settings import Settings, UnseenSettings
from tests.unit.tiny_clip import settings

WIDTH, SCALE = 6, 20.0
LISTED = class_list(["w", "x", "y", "z"])


def _unit(*key: int, count: int) -> np.ndarray:
    x = np.random.default_rng(key).normal(size=(count, WIDTH)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Made(View):
    """Features that depend on the function alone."""

    def __init__(self, count: int) -> None:
        self.compact = self.frozen = _unit(0, count=count)
        self._rows = np.arange(count)

    def prepare(self, pairs: Sequence[tuple[int, Function]]) -> None:
        """Nothing is computed late."""

    def features(self, function: Function) -> np.ndarray:
        return _unit(1, ord(function.task), count=50)[self._rows]

    def text(self, listed: ClassList, function: Function | None) -> np.ndarray:
        return _unit(2, 0 if function is None else ord(function.task), count=len(listed))

    def take(self, rows: np.ndarray) -> Made:
        part = Made(len(rows))
        part.frozen, part._rows = self.frozen[rows], self._rows[rows]
        return part


def _record(name: str, curve: list[float] | None = None, temperature: float = 1.0) -> TaskRecord:
    classes = tuple(item.name for item in LISTED)
    return TaskRecord(
        name, classes, LISTED[0].templates, {}, {}, temperature=temperature, lambda_accuracy=curve
    )


def _state(names: str, chosen: Settings | None = None, **temperatures: float) -> State:
    """TRGE that knows some tasks, without a backbone and with an identifier that is not asked."""
    chosen = chosen or settings(identifier={"name": "oracle"})
    groups = [
        GroupRecord(i, n, "trge", (_record(n, temperature=temperatures.get(n, 1.0)),))
        for i, n in enumerate(names)
    ]
    basis = make_basis([(_unit(3, count=50), _unit(4, count=50))], WIDTH, "noise", "all")
    return build_state(groups, chosen, basis, scale=SCALE)


def _found(shares: list[list[float]], names: str = "abc") -> Identification:
    count = len(shares)
    with np.errstate(divide="ignore"):
        return Identification(tuple(names), np.log(shares), np.zeros(count), np.ones(count))


def _group(view: Made, task: str, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of one group alone."""
    function = Function(task, task)
    z = SCALE * view.features(function) @ view.text(LISTED, function).T
    return np.exp(log_softmax(z / temperature))


def test_fusion_is_the_formula() -> None:
    view, state = Made(3), _state("abc", b=2.0)
    frozen = log_softmax(SCALE * view.frozen @ view.text(LISTED, None).T)
    found = _found([[0.6, 0.1, 0.3], [0.2, 0.2, 0.6], [0.0, 1.0, 0.0]])
    fused, spoke = state.fused(view, found, LISTED, frozen, weight=0.3)
    said = {"a": _group(view, "a"), "b": _group(view, "b", 2.0), "c": _group(view, "c")}
    weights = [{"a": 2 / 3, "c": 1 / 3}, {"c": 0.75, "a": 0.25}, {"b": 1.0}]
    for row, shares in enumerate(weights):
        groups = sum(share * said[task][row] for task, share in shares.items())
        np.testing.assert_allclose(
            np.exp(fused[row]), 0.7 * np.exp(frozen[row]) + 0.3 * groups, rtol=1e-6
        )
        assert dict(spoke[row]) == pytest.approx(shares)
    np.testing.assert_allclose(np.exp(fused).sum(axis=1), 1.0)


def test_without_speakers_it_is_frozen_clip_to_the_bit() -> None:
    view, state = Made(2), _state("abc")
    frozen = log_softmax(SCALE * view.frozen @ view.text(LISTED, None).T)
    nobody = _found([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # the oracle, of an unseen image
    for found, weight in ((nobody, 0.5), (_found([[1.0, 0, 0]] * 2), 0.0), (None, 0.5)):
        fused, spoke = state.fused(view, found, LISTED, frozen, weight=weight)
        assert np.array_equal(fused, frozen) and spoke == [(), ()]
    mixed, _ = state.fused(view, _found([[1.0, 0, 0], [0, 0, 0]]), LISTED, frozen, weight=0.5)
    assert not np.array_equal(mixed[0], frozen[0]) and np.array_equal(mixed[1], frozen[1])


def test_only_the_likeliest_groups_speak_and_ties_go_by_name() -> None:
    few = settings(method={"unseen": {"groups": 1}}, identifier={"name": "oracle"})
    found = _found([[0.25, 0.5, 0.25], [0.4, 0.2, 0.4]])
    assert [_state("cba", few).speakers(found, row) for row in (0, 1)] == [
        (("b", 1.0),),
        (("a", 1.0),),
    ]
    two = _state("cba").speakers(found, 0)
    assert [task for task, _ in two] == ["b", "a"]
    assert [share for _, share in two] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("learned", "steps", "expected"),
    [(0, 2.0, 0.0), (1, 2.0, 0.2), (2, 2.0, 0.3), (4, 2.0, 0.4), (3, 0.0, 0.6), (0, 0.0, 0.0)],
)
def test_a_fixed_weight_grows_with_what_is_learned(
    learned: int, steps: float, expected: float
) -> None:
    unseen = UnseenSettings(lambda_max=0.6, lambda_steps=steps)
    assert fusion_weight(unseen, [_record(str(i)) for i in range(learned)]) == pytest.approx(
        expected
    )


def test_auto_applies_the_lambda_that_was_measured() -> None:
    """No ramp over it, whatever `lambda_steps` says: what was best on unseen folds is applied."""

    def curve(best: int, height: float) -> list[float]:
        return [height - abs(i - best) for i in range(len(LAMBDAS))]

    auto = UnseenSettings(lambda_max="auto", lambda_steps=100.0)
    first = _record("a")  # nothing was learned before it: it says nothing
    assert fusion_weight(auto, []) == fusion_weight(auto, [first]) == 0.0
    assert fusion_weight(auto, [first, _record("b", curve(7, 50.0))]) == LAMBDAS[7]
    both = [first, _record("b", curve(4, 90.0)), _record("c", curve(10, 10.0))]
    assert LAMBDAS[4] <= fusion_weight(auto, both) <= LAMBDAS[10]
    assert fusion_weight(auto, both) == fusion_weight(auto, both[::-1])
    flat = [replace(first, lambda_accuracy=[40.0] * len(LAMBDAS))]
    assert fusion_weight(auto, flat) == 0.0, "no gain, no say"
    # A gain counts, not a height: a fold on which everything is right outvotes nobody.
    steep = _record("b", [90.0] * len(LAMBDAS)), _record("c", curve(20, 30.0))
    assert fusion_weight(auto, steep) == LAMBDAS[20]
