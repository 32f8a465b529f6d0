"""Features are computed once for each function, stored, and reused; wrong counts never pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archipelago.actors.encoders import EncoderPool
from archipelago.pipeline.evaluation.views import CachedFeatures, FeatureStore, Fetch, SplitView
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.learned import engine as engines
from archipelago.pipeline.learned.engine import Engine, EngineSpec, merged, parts_of
from archipelago.pipeline.learned.passes import Passed
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.learned.views import LiveView
from archipelago.pipeline.methods import Function
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.records import ClassList, Prompted, class_list
from archipelago.pipeline.records.basis import keep_basis
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, PreparedDomain
from tests.unit.tiny_run import World, make_noise_basis, make_world, run_settings

COUNT = 10
A, B = Function("a", "a"), Function("b", "b")


class Encoder:
    """Features `(row, function)` of which it remembers what it was asked."""

    def __init__(self, lost: int = 0) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.lost = lost

    def look(self, table: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(("frozen", rows.tolist()))
        kept = rows[self.lost :, None].astype(np.float32)
        return kept * [1, 2], kept * [3, 4, 5]

    def features(self, table: str, rows: np.ndarray, function: Function) -> np.ndarray:
        self.asked.append((function.task, rows.tolist()))
        return (rows[self.lost :, None] * 10 + ord(function.task)).astype(np.float32)


def _domain(name: str = "x", digest: str = "d") -> PreparedDomain:
    digests = {"train": "0" * 64, "test": digest * 64}
    return PreparedDomain(name, ("u",), ("{}",), "made", "CC0", {"test": "t"}, digests, {}, 0)


def _store(path: Path, encoder: Encoder, width: int = 2, **chosen: Any) -> FeatureStore:
    settings = IdentifierSettings(name="prototype", **chosen)
    store = FeatureStore(RunFolder(path), encoder, width, settings)  # type: ignore[arg-type]
    store.versions = {"a": "1" * 64, "b": "2" * 64}
    return store


def _get(store: FeatureStore, function: Function, *rows: int, **domain: str) -> list[float]:
    found = store.get(_domain(**domain), COUNT, function, np.array(rows, np.int64))
    return found[:, 0].tolist()


# -- the store -----------------------------------------------------------------------------------


def test_only_missing_rows_are_computed(tmp_path: Path) -> None:
    encoder = Encoder()
    store = _store(tmp_path, encoder)
    assert _get(store, A, 4, 1) == [137.0, 107.0]
    assert _get(store, A, 1, 4, 1) == [107.0, 137.0, 107.0]
    assert _get(store, A, 2, 0, 1) == [117.0, 97.0, 107.0]
    assert encoder.asked == [("a", [1, 4]), ("a", [0, 2])] and store.computed == 4


def test_another_process_reads_them_back(tmp_path: Path) -> None:
    store = _store(tmp_path, Encoder())
    _get(store, A, 4, 1)
    before = store.frozen(_domain(), COUNT)
    encoder = Encoder()
    store = _store(tmp_path, encoder)
    assert _get(store, A, 1, 4, 5) == [107.0, 137.0, 147.0]
    after = store.frozen(_domain(), COUNT)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert encoder.asked == [("a", [5])] and store.computed == 1


def test_what_makes_a_feature_another_one(tmp_path: Path) -> None:
    """The function, the weights that it uses, the images; not the name of the stage alone."""
    _get(_store(tmp_path, Encoder()), A, 1)
    for function, domain, versions in (
        (B, {}, {}),
        (A, {"digest": "e"}, {}),
        (A, {"name": "y"}, {}),
        (A, {}, {"a": "3" * 64}),
        (Function("a", "b"), {}, {}),  # a's function with the weights that b's stage left
    ):
        encoder = Encoder()
        store = _store(tmp_path, encoder)
        store.versions |= versions
        _get(store, function, 1, **domain)
        assert len(encoder.asked) == 1, (function, domain, versions)
        _get(store, function, 1, **domain)
        assert len(encoder.asked) == 1


def test_weights_that_change_under_a_name_change_what_is_given(tmp_path: Path) -> None:
    encoder = Encoder()
    store = _store(tmp_path, encoder)
    shared = Function("a", "b")
    for version, asked in (("1", 1), ("1", 1), ("2", 2), ("1", 2)):
        store.versions["b"] = version * 64
        _get(store, shared, 1)
        assert len(encoder.asked) == asked


def test_frozen_features_are_of_a_basis(tmp_path: Path) -> None:
    trunk, mirror = {"depths": "trunk"}, {"mirror": True}
    for width, chosen, asked in ((2, {}, 1), (2, {}, 0), (3, {}, 1), (2, trunk, 1), (2, mirror, 1)):
        encoder = Encoder()
        _store(tmp_path, encoder, width, **chosen).frozen(_domain(), COUNT)
        assert len(encoder.asked) == asked


def test_wrong_counts_are_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    store = _store(tmp_path, Encoder(lost=1))
    with pytest.raises(RuntimeError, match="x: 2 rows were sent for evaluation, 1 came back"):
        _get(store, A, 1, 2)
    with pytest.raises(RuntimeError, match="x: 10 test images, features of 9"):
        store.frozen(_domain(), COUNT)
    assert store.computed == 0 and not list(tmp_path.rglob("*.safetensors"))


# -- class features ------------------------------------------------------------------------------


class Writer:
    """Encodes a name as its length; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[ClassList, Function | None]] = []

    def __call__(self, listed: ClassList, function: Function | None) -> np.ndarray:
        self.asked.append((listed, function))
        return np.array([[len(item.name), len(item.templates)] for item in listed], np.float32)


def test_a_name_is_encoded_once_for_each_function_and_its_weights() -> None:
    encode = Writer()
    texts, some = Texts(encode), class_list(["cat", "horse"])
    assert texts.get(some, None)[:, 0].tolist() == [3.0, 5.0]
    more = (Prompted("cat"), Prompted("cat", ("a {}", "one {}")), *some)
    assert texts.get(more, None).tolist() == [[3, 1], [3, 2], [3, 1], [5, 1]]
    assert encode.asked[-1] == ((Prompted("cat", ("a {}", "one {}")),), None)
    for function, version in ((A, None), (A, "1"), (A, "2"), (B, "1"), (A, "1"), (None, None)):
        texts.get(some, function, version)
    assert len(encode.asked) == 6 and texts.get((), A).shape[0] == 0


def test_what_a_record_holds_is_not_encoded_again() -> None:
    encode = Writer()
    texts = Texts(encode)
    known = np.array([[7.0, 7.0]], np.float32)
    texts.keep(class_list(["cat"]), A, known, "1")
    assert texts.get(class_list(["cat"]), A, "1").tolist() == [[7.0, 7.0]] and not encode.asked
    texts.get(class_list(["cat"]), A, "2")
    assert len(encode.asked) == 1


# -- views ---------------------------------------------------------------------------------------


def _split(fetch: Fetch) -> SplitView:
    compact = np.arange(12.0).reshape(6, 2)
    return SplitView(compact, compact + 100, fetch, Texts(Writer()), {"a": "1"})


def test_a_part_of_a_view_is_of_its_own_rows() -> None:
    encoder = Encoder()
    rows = np.array([5, 3, 8, 1, 0, 9])
    view = _split(CachedFeatures(encoder, "t", rows))  # type: ignore[arg-type]
    view.prepare([(0, A), (2, A), (0, B), (2, A)])
    assert encoder.asked == [("a", [5, 8]), ("b", [5])]
    part = view.take(np.array([4, 2])).take(np.array([1, 0]))
    assert len(part) == 2 and part.compact.tolist() == [[4.0, 5.0], [8.0, 9.0]]
    assert part.features(A)[:, 0].tolist() == [177.0, 97.0]
    assert encoder.asked[2:] == [("a", [0])], "what was prepared is not computed again"
    assert view.features(A)[:, 0].tolist() == [147, 127, 177, 107, 97, 187]


class Passing:
    """Stands for a method: the feature of an image is its activation plus its function."""

    def __init__(self) -> None:
        self.backbone = self
        self.kernels = Kernels()
        self.passes: list[int] = []

    def image_features(self, x_BLD: Any, functions: Sequence[Function]) -> Any:
        self.passes.append(len(functions))
        add = x_BLD.new_tensor([ord(function.task) for function in functions])
        return x_BLD[:, 0] + add[:, None]


def test_images_in_hand_pass_once_whoever_wants_them() -> None:
    import torch

    method = Passing()
    x_BLD = torch.arange(4.0)[:, None, None] * 10
    passed = Passed(x_BLD, np.arange(4.0)[:, None], np.arange(4.0)[:, None])
    view = LiveView(method, passed, Texts(Writer()), {})  # type: ignore[arg-type]
    view.prepare([(0, A), (1, B), (2, A), (3, B), (1, B)])
    assert method.passes == [4], "one pass of all functions"
    part = view.take(np.array([3, 1]))
    assert part.features(B)[:, 0].tolist() == [128.0, 108.0] and method.passes == [4]
    part = view.take(np.array([3, 2])).take(np.array([1]))
    assert part.features(A)[:, 0].tolist() == [117.0] and method.passes == [4]
    assert part.compact.tolist() == [[2.0]]
    assert view.features(A)[:, 0].tolist() == [97.0, 107.0, 117.0, 127.0]
    assert method.passes == [4, 2]


# -- statistics ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples",))


def test_statistics_do_not_depend_on_who_forms_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a fixed size, merged in their order: the same bits in this process and in a pool."""
    chosen, run = run_settings(world), RunFolder(tmp_path / "run")
    spec = EngineSpec(chosen, run.uri, Kernels())
    engine = Engine(spec)
    keep_basis(run, make_noise_basis(engine))
    (domain,) = world.domains
    table = domain.tables["train"]
    images = ImageTable.open(table)
    rows = np.arange(len(images))
    whole = engine.statistics(table, rows, len(domain.classes))
    compact, frozen = engine.look(table, rows)
    assert whole[0].total == len(rows) == len(whole[1])
    for label in range(len(domain.classes)):
        mean = compact[images.labels == label].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(whole[0].means[label], mean, atol=1e-5)
    places = whole[1].places
    np.testing.assert_allclose(whole[1].frozen, frozen[places], atol=1e-3)
    assert np.array_equal(whole[1].labels, images.labels[places])

    monkeypatch.setattr(engines, "PART", 10)
    assert [len(part) for part in parts_of(rows)] == [10, 10, 10, 10, 4]
    parts = [engine.statistics(table, part, len(domain.classes)) for part in parts_of(rows)]
    with EncoderPool(chosen) as pool:
        pooled = pool.engine(spec).statistics(table, rows, len(domain.classes))
    for found in (merged(parts), pooled):
        for name, array in found[0].arrays().items():
            expected = whole[0].arrays()[name]
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-4)
        assert np.array_equal(found[1].keys, whole[1].keys)
        assert np.array_equal(found[1].places, whole[1].places)
    for part, other in zip(merged(parts), pooled, strict=True):
        for name, array in part.arrays().items():
            assert np.array_equal(array, other.arrays()[name]), name


def test_rows_kept_out_of_the_sums_are_those_that_calibrate(world: World, tmp_path: Path) -> None:
    chosen, run = run_settings(world), RunFolder(tmp_path / "run")
    engine = Engine(EngineSpec(chosen, run.uri, Kernels()))
    keep_basis(run, make_noise_basis(engine))
    (domain,) = world.domains
    held = np.array([3, 7, 20])
    sums, rows = engine.statistics(domain.tables["train"], np.arange(44), 4, held)
    assert sums.total == 41 and not rows.counted.any()
    assert sorted(rows.places) == held.tolist()
