"""A logit is computed once, stored, and reused; wrong counts never pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline.evaluation.logits import LogitStore, list_digest

from pipeline.store import RunFolder

SHAPE = (10, 3)


class Model:
    """Computes `row * 10 + class` and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(rows.tolist())
        return (rows[:, None] * 10.0 + np.arange(3)).astype(np.float32)


def _rows(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def _get(store: LogitStore, model: Model, *rows: int, **changed: str | None) -> np.ndarray:
    key = {"task": "a", "digest": "d" * 64, "function": None} | changed
    return store.get(*key.values(), _rows(*rows), SHAPE, model)  # type: ignore[arg-type]


def test_only_missing_rows_are_computed(tmp_path: Path) -> None:
    store, model = LogitStore(RunFolder(tmp_path), {}), Model()
    assert _get(store, model, 4, 1)[:, 0].tolist() == [40.0, 10.0]
    assert _get(store, model, 1, 4)[:, 0].tolist() == [10.0, 40.0]
    assert _get(store, model, 0, 1, 2)[:, 2].tolist() == [2.0, 12.0, 22.0]
    assert _get(store, model).shape == (0, 3)
    assert model.asked == [[4, 1], [0, 2]] and store.computed == 4


def test_another_process_reads_them_back(tmp_path: Path) -> None:
    _get(LogitStore(RunFolder(tmp_path), {}), Model(), 4, 1)
    store, model = LogitStore(RunFolder(tmp_path), {}), Model()
    assert _get(store, model, 1, 4, 5)[:, 1].tolist() == [11.0, 41.0, 51.0]
    assert model.asked == [[5]] and store.computed == 1


@pytest.mark.parametrize(
    "other", [{"task": "b"}, {"digest": "e" * 64}, {"function": "f"}, {"function": "g"}]
)
def test_what_makes_a_logit_another_one(tmp_path: Path, other: dict[str, str]) -> None:
    hashes = {"f": "1" * 64, "g": "2" * 64}
    _get(LogitStore(RunFolder(tmp_path), hashes), Model(), 1)
    model = Model()
    _get(LogitStore(RunFolder(tmp_path), hashes), model, 1, **other)
    assert model.asked == [[1]]


def test_other_weights_under_the_same_name_are_another_function(tmp_path: Path) -> None:
    for sha256, asked in (("1" * 64, [[1]]), ("1" * 64, []), ("2" * 64, [[1]])):
        model = Model()
        _get(LogitStore(RunFolder(tmp_path), {"f": sha256}), model, 1, function="f")
        assert model.asked == asked


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_counts_are_refused_and_nothing_is_stored(tmp_path: Path, count: int) -> None:
    store = LogitStore(RunFolder(tmp_path), {})
    with pytest.raises(RuntimeError, match=f"2 rows were sent for evaluation, {count} came back"):
        store.get("a", "d", None, _rows(1, 2), SHAPE, lambda rows: np.zeros((count, 3)))
    with pytest.raises(RuntimeError):
        store.get("a", "d", None, _rows(1, 2), SHAPE, lambda rows: np.zeros((2, 4)))
    assert store.computed == 0 and not list(tmp_path.rglob("*.safetensors"))


def test_the_class_list_is_part_of_the_identity() -> None:
    lists = [
        ("x", ("a", "b"), ("{}",)), ("y", ("a", "b"), ("{}",)), ("x", ("b", "a"), ("{}",)),
        ("x", ("a", "b"), ("a {}",)), ("x", ("a", "b", "{}"), ()),
    ]  # fmt: skip
    assert len({list_digest(*parts) for parts in lists}) == len(lists)
