"""Rows that belong together: by a column or a pattern, decoded once, refused in words."""

from __future__ import annotations

import datetime
import logging
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.streams import (
    Domain,
    ImageTable,
    PreparedDomain,
    execution,
    open_stream,
    prepare,
)
from archipelago.pipeline.streams.coverage import check_coverage
from archipelago.pipeline.streams.groups import numbered
from tests.helpers import parquet_domain, png

CLASSES, FRAMES, TRACKS = 3, 4, 3  # images of a track, tracks of a class


def with_column(folder: Path, name: str, values: Any, split: str = "train") -> None:
    """Add a column to the files of a split."""
    file = folder / f"{split}.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column(name, pa.array(values)), file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`tracks` has rows in tracks, by column and by path; `plain` has not."""
    folder = tmp_path / "stream"
    domain = parquet_domain(folder, "tracks", CLASSES, TRACKS * FRAMES, 2)
    table = pq.read_table(domain / "train.parquet")
    rows = np.arange(len(table))
    track = (rows % CLASSES) * TRACKS + rows // (CLASSES * FRAMES)
    image = [
        {"bytes": value["bytes"], "path": f"{label}/{number:03d}_{row}.png"}
        for row, (value, label, number) in enumerate(
            zip(table["image"].to_pylist(), table["label"].to_pylist(), track, strict=True)
        )
    ]
    table = pa.table({"image": image, "label": table["label"]})
    pq.write_table(table, domain / "train.parquet")
    with_column(domain, "track", [f"t{number}" for number in track])
    parquet_domain(folder, "plain", CLASSES, 6, 2)
    return folder


def opened(root: Path, *order: str, reader: str = "parquet", **options: Any) -> list[Domain]:
    chosen = StreamSettings(
        reader=reader, root=str(root), order=list(order) or None, options=options
    )
    return open_stream(chosen, 0)


def prepared(domains: list[Domain], base: Path) -> list[PreparedDomain]:
    return prepare(
        domains,
        size=8,
        run=str(base / "run"),
        cache_dir=str(base / "cache"),
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )


def train(domain: PreparedDomain) -> ImageTable:
    return ImageTable.open(domain.tables["train"])


def alike(groups: np.ndarray | None) -> set[frozenset[int]]:
    """Groups as sets of positions."""
    assert groups is not None
    return {frozenset(np.flatnonzero(groups == number).tolist()) for number in set(groups)}


def test_a_column_and_a_pattern_say_the_same(root: Path, tmp_path: Path) -> None:
    (by_column,) = prepared(opened(root, "tracks", group="track"), tmp_path)
    (by_pattern,) = prepared(opened(root, "tracks", group_pattern="([0-9]+/[0-9]+)_"), tmp_path)
    (by_match,) = prepared(opened(root, "tracks", group_pattern="[0-9]/[0-9]{3}"), tmp_path)
    table = train(by_column)
    found = alike(table.groups)
    assert {len(rows) for rows in found} == {FRAMES} and len(found) == CLASSES * TRACKS
    assert alike(train(by_pattern).groups) == alike(train(by_match).groups) == found
    assert by_pattern.digests == by_column.digests, "the same groups are the same data"
    again = pickle.loads(pickle.dumps(table))
    assert np.array_equal(again.groups, table.groups)
    assert ImageTable.open(by_column.tables["test"]).groups is None


def test_groups_decode_nothing_anew(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = prepared(opened(root, "tracks"), tmp_path)
    monkeypatch.setattr(execution, "write_shard", None)
    (grouped,) = prepared(opened(root, "tracks", group="track"), tmp_path)
    (coarse,) = prepared(opened(root, "tracks", group_pattern="^[0-9]/"), tmp_path)
    for domain in (grouped, coarse):
        assert np.array_equal(
            train(domain).images(np.arange(36)), train(plain).images(np.arange(36))
        )
        assert np.array_equal(train(domain).labels, train(plain).labels)
        assert domain.digests["test"] == plain.digests["test"]
    digests = {domain.digests["train"] for domain in (plain, grouped, coarse)}
    assert len(digests) == 3, "other groups are other data to learn from"


def test_parts_and_quarantine_keep_the_groups(root: Path, tmp_path: Path) -> None:
    file = root / "tracks/train.parquet"
    table = pq.read_table(file)
    image = table["image"].to_pylist()
    image[4] = {"bytes": b"no image", "path": image[4]["path"]}
    pq.write_table(table.set_column(0, "image", pa.array(image)), file)
    names = table["track"].to_pylist()
    for options in ({}, {"shots": 6}, {"steps": 2}, {"steps": 2, "shots": 5}):
        for domain in prepared(opened(root, "tracks", group="track", **options), tmp_path):
            found = train(domain)
            assert 4 not in found.rows
            groups = found.groups
            assert groups is not None
            stated = [names[row] for row in found.rows]
            assert len({*zip(groups.tolist(), stated, strict=True)}) == len(set(stated))
            assert len(set(groups.tolist())) == len(set(stated))


def test_without_a_match_a_row_stands_alone(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (domain,) = prepared(opened(root, "tracks", group_pattern="(0/00[01])_|x"), tmp_path)
    sizes = sorted(len(rows) for rows in alike(train(domain).groups))
    assert sizes == [1] * (36 - 2 * FRAMES) + [FRAMES] * 2
    with caplog.at_level(logging.WARNING):
        both = opened(root, "plain", "tracks", group="track")
        alone = opened(root, "tracks", group_pattern=".*")
    assert (
        "plain: stream.options.group: no training row has a column 'track'; each row stands alone"
        in caplog.text
    )
    assert "tracks: stream.options.group_pattern: no two rows belong together" in caplog.text
    digests = prepared(opened(root, "plain", "tracks"), tmp_path)
    assert prepared(both, tmp_path)[0] == digests[0]
    assert prepared(alone, tmp_path)[0] == digests[1], "as if nothing had been said"


@pytest.mark.parametrize(
    "values",
    [
        [7, 7, None, None, 2**40],
        [True, True, None, None, False],
        [1.5, 1.5, float("nan"), float("nan"), 2.0],
        [b"a", b"a", None, None, b"b"],
        [datetime.date(2020, 1, 1)] * 2 + [None, None, datetime.date(2020, 1, 2)],
        pa.array(["a", "a", None, None, "b"]).dictionary_encode(),
    ],
)
def test_any_plain_type_will_do(tmp_path: Path, values: Any) -> None:
    folder = parquet_domain(tmp_path / "s", "d", 1, 5, 1)
    (folder / "domain.json").write_text('{"classes": ["a", "b"], "templates": ["{}"]}')
    with_column(folder, "who", values)
    (domain,) = opened(tmp_path / "s", "d", group="who")
    assert domain.splits["train"].groups == (0, 0, 1, 2, 3)


def test_numbers_follow_the_rows() -> None:
    assert numbered(["b", None, "a", "b", None]) == (0, 1, 2, 0, 3)


def test_a_split_of_several_files_shares_its_groups(root: Path) -> None:
    file = root / "tracks/train.parquet"
    table = pq.read_table(file)
    whole = opened(root, "tracks", group="track")[0].splits["train"].groups
    for part, rows in enumerate((table.slice(0, 10), table.slice(10))):
        pq.write_table(rows, file.with_name(f"train-{part}.parquet"))
    file.unlink()
    assert opened(root, "tracks", group="track")[0].splits["train"].groups == whole
    pq.write_table(table.slice(10).drop_columns(["track"]), file.with_name("train-1.parquet"))
    with pytest.raises(
        UserError, match=r"options\.group: .*train-1\.parquet has no column 'track'"
    ):
        opened(root, "tracks", group="track")


# -- other readers --------------------------------------------------------------------------------


def folder_domain(root: Path, ready: bool) -> None:
    for split, tracks in (("train", 4), ("test", 1)) if ready else (("", 5),):
        for label in ("cat", "dog"):
            for track in range(tracks):
                for frame in range(3):
                    file = root / "pets" / split / label / f"t{track}" / f"{frame}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(png((40 * track, 90, 100 * (label == "cat")), seed=frame))


def test_paths_of_a_folder_are_matched_below_its_domain(tmp_path: Path) -> None:
    folder_domain(tmp_path / "t9", ready=True)
    (domain,) = opened(tmp_path / "t9", reader="folder", group_pattern="^train/.*/t[0-9]")
    groups = domain.splits["train"].groups
    assert groups is not None and np.bincount(groups).tolist() == [3] * 8
    with pytest.raises(UserError, match="no training row of pets has a name that matches 't9'"):
        opened(tmp_path / "t9", reader="folder", group_pattern="t9")


def test_a_test_is_dealt_out_of_whole_groups(tmp_path: Path) -> None:
    folder_domain(tmp_path, ready=False)
    (domain,) = opened(tmp_path, reader="folder", group_pattern="[a-z]+/t[0-9]")
    names = {
        split: {
            name.rpartition("/")[0]
            for chunk in found.chunks
            for name in chunk.files(range(found.count)).values()  # type: ignore[attr-defined]
        }
        for split, found in domain.splits.items()
    }
    assert not names["train"] & names["test"] and len(names["test"]) == 2
    assert domain.splits["train"].groups is not None
    with pytest.raises(UserError, match=r"one group of images \(stream.options.group_pattern\) a"):
        opened(tmp_path, reader="folder", group_pattern="^[a-z]+")


def test_sets_of_the_hub_have_columns_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        """A data set as far as the reader looks."""

        def __init__(self) -> None:
            image = [{"bytes": png((9, 9, i)), "path": f"v{i // 2}-{i}.png"} for i in range(6)]
            self.data = pa.table({"image": image, "label": [0, 1] * 3, "video": [5, 5, 5, 8, 8, 9]})
            self.column_names = self.data.column_names
            names = types.SimpleNamespace(names=["a", "b"], dtype="int64")
            self.features, self.info = {"label": names}, types.SimpleNamespace(license=None)

        def cast_column(self, *_: Any) -> Hub:
            return self

        def __len__(self) -> int:
            return len(self.data)

    hub = types.SimpleNamespace(load_dataset=lambda *a, **k: Hub(), Image=lambda decode: None)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    sets = {"pets": {"path": "someone/pets"}}
    for options, groups in (
        ({"group": "video"}, (0, 0, 0, 1, 1, 2)),
        ({"group_pattern": "v[0-9]"}, (0, 0, 1, 1, 2, 2)),
    ):
        (domain,) = opened(Path("x"), "pets", reader="hf", sets=sets, **options)
        assert domain.splits["train"].groups == groups
        assert domain.splits["test"].groups is None
    with pytest.raises(
        UserError, match=r"options\.group: no training row of pets has a column 'track'"
    ):
        opened(Path("x"), "pets", reader="hf", sets=sets, group="track")


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"group": "trak"},
            "stream.options.group: no training row of plain, tracks has a column 'trak'; mend",
        ),
        ({"group": ""}, "stream.options.group: '' is no name of a column; give one, or null"),
        ({"group": 3}, "stream.options.group: 3 is no name of a column"),
        ({"group_pattern": 3}, "stream.options.group_pattern: 3 is no regular expression"),
        ({"group_pattern": "(["}, "stream.options.group_pattern: '([' is no regular expression: "),
        (
            {"group_pattern": "zebra"},
            "stream.options.group_pattern: no training row of plain, tracks has a name that "
            "matches 'zebra'; mend it, or give null",
        ),
        ({"group_pattern": "(zebra)|t"}, "stream.options.group_pattern: no training row of"),
        (
            {"group": "track", "group_pattern": "t"},
            "stream.options.group_pattern: stream.options.group=track says already which rows "
            "belong together; give one of the two",
        ),
        ({"group": "image"}, "stream.options.group: column 'image' of "),
    ],
)
def test_what_groups_nothing_is_refused(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_rows_do_not_state_match_nothing(root: Path) -> None:
    file = root / "tracks/train.parquet"
    table = pq.read_table(file)
    plain = pa.array([value["bytes"] for value in table["image"].to_pylist()])
    pq.write_table(table.set_column(0, "image", plain), file)
    with pytest.raises(UserError, match="no training row of tracks has a name"):
        opened(root, "tracks", group_pattern="train")


@pytest.mark.parametrize(
    ("reader", "key", "lack"),
    [
        ("rendered", "group", "columns"),
        ("rendered", "group_pattern", "names"),
        ("torchvision", "group_pattern", "names"),
        ("folder", "group", "columns"),
    ],
)
def test_readers_without_names_have_no_groups(
    tmp_path: Path, reader: str, key: str, lack: str
) -> None:
    with pytest.raises(UserError, match=rf"stream\.options\.{key}: this reader has no {lack} "):
        opened(tmp_path, reader=reader, **{key: "x"})


def test_dense_tasks_have_no_groups() -> None:
    chosen = StreamSettings(reader="scenes", order=["edges"], options={"group_pattern": "x"})
    with pytest.raises(UserError, match=r"stream\.options\.group_pattern: "):
        open_stream(chosen, 0, dense=True)


def test_one_group_a_class_leaves_none_to_hold_out(root: Path, tmp_path: Path) -> None:
    domains = prepared(opened(root, "tracks", group_pattern="^[0-9]/"), tmp_path)
    check_coverage(domains, 0.1, 0, holds_out=False)
    with pytest.raises(UserError, match="tracks: 3 training groups of images, one a class at most"):
        check_coverage(domains, 0.1, 0, holds_out=True)
