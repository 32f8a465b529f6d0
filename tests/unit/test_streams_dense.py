"""Dense targets in the cache: the same rows, one column each, quarantined each for itself."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams import (
    DenseTable,
    Domain,
    ImageTable,
    RawRow,
    Split,
    Target,
    Unusable,
)
from archipelago.pipeline.streams import open_stream as open_settings
from archipelago.pipeline.streams.scenes import render
from archipelago.pipeline.streams.stream import check_domain
from archipelago.pipeline.streams.targets import IGNORE, SCALE, to_stored
from tests.helpers import png
from tests.unit.test_streams_cache import prepare

TASKS = (Target("seg", "segmentation", 3), Target("up", "normals", 0), Target("line", "edges", 2))


def scenes(**options: int) -> list[Domain]:
    settings = StreamSettings(reader="scenes", options=options)
    return open_settings(settings, 0, dense=True)


@dataclass(frozen=True)
class Rows:
    """Rows as (image, targets)."""

    pairs: tuple[tuple[Any, dict[str, Any]], ...]

    def rows(self) -> Iterator[RawRow]:
        for i, (image, targets) in enumerate(self.pairs):
            yield RawRow(i, image, None, targets)


def listed(*pairs: tuple[Any, dict[str, Any]], digest: str = "a") -> list[Domain]:
    splits = {
        name: Split(name, (Rows(pairs),), len(pairs), name + digest, TASKS)
        for name in ("train", "test")
    }
    seg = Domain("seg", ("a", "b", "c"), (), splits, "generated", "CC0", "segmentation")
    up = replace(seg, name="up", classes=(), kind="normals")
    return [seg, up, replace(seg, name="line", classes=("inside", "edge"), kind="edges")]


def targets(size: tuple[int, int] = (8, 8)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    seg = rng.integers(0, 3, size).astype(np.uint8)
    edges = (rng.random(size) < 0.2).astype(np.uint8)
    return {"seg": seg, "up": to_stored(rng.normal(size=(*size, 3))), "line": edges}


def test_scenes_are_cached_once_for_five_tasks(tmp_path: Path) -> None:
    domains = prepare(scenes(train=53, test=3), tmp_path, size=64)
    assert [(d.name, d.kind) for d in domains] == [
        ("edges", "edges"),
        ("normals", "normals"),
        ("parts", "parts"),
        ("saliency", "saliency"),
        ("semseg", "segmentation"),
    ]
    assert len({d.tables["train"] for d in domains}) == 1
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2
    assert all(d.counts == {"train": 53, "test": 3} and not d.quarantined for d in domains)
    table = DenseTable.open(domains[0].tables["train"])
    chosen = np.array([52, 3, 3, 50])
    for position, index in enumerate(chosen):
        image, truth = render(0, "train", int(index))
        assert (table.images(chosen)[position] == image).all()
        for name, target in truth.items():
            found = table.targets(name, chosen)[position]
            assert found.dtype == target.dtype and (found == target).all()
    assert (table.labels == -1).all() and table.usable("parts").all()
    assert table.kinds["semseg"] == Target("semseg", "segmentation", 8)
    copy = pickle.loads(pickle.dumps(table))
    assert (copy.targets("normals", chosen) == table.targets("normals", chosen)).all()
    with pytest.raises(IndexError, match=r"outside 0\.\.52"):
        table.targets("edges", np.array([53]))
    with pytest.raises(KeyError, match="no task 'depth'; it holds edges, normals"):
        table.usable("depth")


def test_rows_without_a_target_are_quarantined_for_that_task_alone(tmp_path: Path) -> None:
    good, image = targets(), png((9, 9, 9))
    wrong_label = good["seg"].copy()
    wrong_label[0, 0] = 3
    domains = prepare(
        listed(
            (image, good),
            (image, {**good, "seg": Unusable("seg: cannot read 5.mat")}),
            (image, {k: v for k, v in good.items() if k != "up"}),
            (image, {**good, "line": np.zeros((9, 8), np.uint8)}),
            (image, {**good, "seg": wrong_label, "up": good["up"].astype(np.float32)}),
            (None, good),
        ),
        tmp_path,
    )
    counts = {d.name: (d.counts["train"], d.quarantined) for d in domains}
    assert counts == {"seg": (3, 6), "up": (3, 6), "line": (4, 4)}
    reasons = {}
    for d in domains:
        found = pq.read_table(tmp_path / f"run/quarantine-{d.name}.parquet").to_pylist()
        assert {row["task"] for row in found} == {d.name}
        reasons[d.name] = {r["row"]: r["reason"] for r in found if r["split"] == "train"}
    assert reasons == {
        "seg": {
            1: "seg: cannot read 5.mat",
            4: "seg: label 3 is outside 0..2",
            5: "no image (null)",
        },
        "up": {
            2: "up: no target (missing)",
            4: "up: holds float32, not int8",
            5: "no image (null)",
        },
        "line": {
            3: "line: target of 8 x 9 pixels for an image of 8 x 8",
            5: "no image (null)",
        },
    }
    table = DenseTable.open(domains[0].tables["train"])
    assert len(table) == 5 and table.usable("seg").tolist() == [True, False, True, True, False]
    everything = np.arange(5)
    assert (table.targets("seg", everything)[[1, 4]] == IGNORE).all()
    assert (table.targets("up", everything)[[2, 4]] == 0).all()
    assert (table.targets("line", everything)[0] == good["line"]).all()
    assert len(ImageTable.open(domains[0].tables["train"])) == 5
    with pytest.raises(UserError, match="seg: no row of its train split is usable: seg: no target"):
        prepare(listed((image, {"up": good["up"]}), digest="b"), tmp_path)


def test_targets_follow_the_geometry_of_their_image() -> None:
    """Shortest side to S, then the centre: as the image."""
    high, wide = 40, 64  # to 20 x 32, of which columns 6..25 stay
    seg = np.zeros((high, wide), np.uint8)
    seg[:, 32:] = 2
    found = TASKS[0].fit(seg, (high, wide), 20)
    assert isinstance(found, np.ndarray) and found.shape == (20, 20)
    assert (found[:, :10] == 0).all() and (found[:, 10:] == 2).all()
    line = np.zeros((high, wide), np.uint8)
    line[:, 33] = 1
    line[0, :] = IGNORE
    line[1, :] = IGNORE
    thin = TASKS[2].fit(line, (high, wide), 20)
    assert isinstance(thin, np.ndarray)
    assert (thin[1:, 10] == 1).all() and (thin == 1).sum() == 19  # one pixel wide, unbroken
    assert (thin[0] == IGNORE).all()
    vectors = np.zeros((high, wide, 3))
    vectors[:, :32] = (0.0, 0.0, 1.0)
    vectors[:, 32:48] = (0.6, 0.0, 0.8)
    up = TASKS[1].fit(to_stored(vectors), (high, wide), 20)
    assert isinstance(up, np.ndarray) and up.dtype == np.int8
    assert np.allclose(up[5, 3] / SCALE, (0, 0, 1)) and np.allclose(
        up[5, 12] / SCALE, (0.6, 0, 0.8), atol=0.01
    )
    length = np.linalg.norm(up / SCALE, axis=-1)
    assert (up[:, 19] == 0).all() and (np.abs(length[:, :17] - 1) < 0.01).all()
    grown = TASKS[0].fit(seg, (high, wide), 80)
    assert isinstance(grown, np.ndarray) and set(np.unique(grown)) == {0, 2}


def test_dense_domains_are_checked_and_refused_where_they_do_not_fit() -> None:
    good = listed((png((1, 1, 1)), targets()))
    for domain in good:
        check_domain(domain)
    cases = [
        (replace(good[0], kind="depth"), "no kind 'depth'"),
        (replace(good[0], name="other"), "its train split holds no such target"),
        (replace(good[0], classes=("a", "b")), "holds segmentation of 3 classes, not segmentation"),
        (replace(good[1], kind="edges", classes=("a", "b")), "holds normals of 0 classes"),
    ]
    for domain, words in cases:
        with pytest.raises(UserError, match=words):
            check_domain(domain)
    with pytest.raises(UserError, match=r"'edges' of reader 'scenes' is a dense task \(edges\)"):
        open_settings(StreamSettings(reader="scenes"), 0)
    with pytest.raises(UserError, match=r"stream\.options\.test: ask for one"):
        scenes(test=0)
    assert [
        d.name
        for d in open_settings(
            StreamSettings(reader="scenes", order=["parts", "edges"]), 0, dense=True
        )
    ] == ["parts", "edges"]


def test_a_table_of_images_alone_is_no_dense_table(tmp_path: Path) -> None:
    from tests.unit.test_streams_cache import listed as plain

    (domain,) = prepare([plain([png((1, 2, 3))], [0])], tmp_path)
    with pytest.raises(UserError, match="holds images without dense targets"):
        DenseTable.open(domain.tables["train"])
