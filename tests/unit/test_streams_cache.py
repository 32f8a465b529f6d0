"""The image cache: decoded once, reused, within its budget, and never torn."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.streams import (
    Domain,
    ImageTable,
    PreparedDomain,
    RawRow,
    Split,
    execution,
    shards,
)
from archipelago.pipeline.streams import open_stream as open_settings
from archipelago.pipeline.streams import prepare as prepare_domains
from archipelago.pipeline.streams.entries import Entries
from archipelago.pipeline.streams.shards import ShardJob, write_shard
from tests.helpers import parquet_domain, png


def open_stream(root: Path) -> list[Domain]:
    return open_settings(StreamSettings(reader="parquet", root=str(root)), 0)


def prepare(domains: list[Domain], base: Path, **changes: Any) -> list[PreparedDomain]:
    settings: dict[str, Any] = {
        "size": 8,
        "run": str(base / "run"),
        "cache_dir": str(base / "cache"),
        "cache_gib": 1.0,
        "cluster": ClusterSettings(),
        "max_pixels": 10_000,
        "use_ray": False,
    }
    return prepare_domains(domains, **(settings | changes))


@dataclass(frozen=True)
class ListChunk:
    """Rows that stand in the chunk itself."""

    images: tuple[Any, ...]
    labels: tuple[int | None, ...]

    def rows(self) -> Iterator[RawRow]:
        for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            yield RawRow(i, image, label)


def listed(images: list[Any], labels: list[int | None], digest: str = "a") -> Domain:
    split = {
        name: Split(name, (ListChunk(tuple(images), tuple(labels)),), len(images), name + digest)
        for name in ("train", "test")
    }
    return Domain("listed", ("x", "y"), ("{}",), split, "generated", "CC0")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of the shards that were really written."""
    written: list[str] = []

    def spy(job: ShardJob) -> shards.ShardResult:
        written.append(job.file)
        return write_shard(job)

    monkeypatch.setattr(execution, "write_shard", spy)
    return written


def test_tables_hold_the_source_to_the_bit(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path / "data", "d", classes=3, train=150)
    (domain,) = prepare(open_stream(tmp_path / "data"), tmp_path)
    source = pq.read_table(folder / "train.parquet").to_pylist()
    want = np.stack([np.asarray(Image.open(io.BytesIO(r["image"]["bytes"]))) for r in source])
    table = ImageTable.open(domain.tables["train"])
    assert len(table) == 450 == domain.counts["train"] and table.size == 8
    assert table.labels.dtype == np.int64 and table.labels.tolist() == [r["label"] for r in source]
    assert table.rows.tolist() == list(range(450))
    assert (table.images(np.arange(450)) == want).all()
    assert table.digest == domain.digests["train"]
    shuffled = np.random.default_rng(0).permutation(450)[:99]
    assert (table.images(shuffled) == want[shuffled]).all()
    twice = table.images(np.array([7, 7]))
    twice[0] = 0
    assert (twice[1] == want[7]).all() and (table.images(np.array([7]))[0] == want[7]).all()
    assert table.images(np.array([], np.int64)).shape == (0, 8, 8, 3)
    for index in (-1, 450):
        with pytest.raises(IndexError, match=r"outside 0\.\.449"):
            table.images(np.array([0, index]))
    copy = pickle.loads(pickle.dumps(table))
    assert (copy.images(shuffled) == want[shuffled]).all()


def test_bad_rows_are_quarantined_with_their_reasons(tmp_path: Path) -> None:
    good = png((9, 9, 9))
    images = [good, None, b"", b"no image", good[:60], png((1, 1, 1), size=101), good, good]
    labels: list[int | None] = [0, 0, 0, 1, 1, 1, None, 2]
    (domain,) = prepare([listed(images, labels)], tmp_path)
    assert domain.counts == {"train": 1, "test": 1} and domain.quarantined == 14
    assert ImageTable.open(domain.tables["test"]).rows.tolist() == [0]
    found = pq.read_table(tmp_path / "run/quarantine-listed.parquet").to_pylist()
    assert {row["task"] for row in found} == {"listed"}
    train = {row["row"]: row["reason"] for row in found if row["split"] == "train"}
    expected = ["null", "empty", "not an image", "cannot decode", "too many pixels", "no label"]
    assert [word in train[i + 1] for i, word in enumerate(expected)] == [True] * 6
    assert train[7] == "label 2 is outside 0..1"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["quarantine-listed.parquet"]


def test_decoded_arrays_skip_decoding_but_not_resizing(tmp_path: Path) -> None:
    exact = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = np.full((16, 40, 3), 50, np.uint8)
    (domain,) = prepare([listed([exact, large], [0, 1])], tmp_path)
    table = ImageTable.open(domain.tables["train"])
    assert (table.images(np.array([0]))[0] == exact).all()
    assert (table.images(np.array([1])) == 50).all()


def test_second_preparation_reuses_the_first(tmp_path: Path, decoded: list[str]) -> None:
    parquet_domain(tmp_path / "data", "d")
    domains = open_stream(tmp_path / "data")
    first = prepare(domains, tmp_path)
    assert len(decoded) == 2
    assert prepare(domains, tmp_path) == first and len(decoded) == 2
    prepare(domains, tmp_path, size=4)
    assert len(decoded) == 4


def test_reuse_still_reports_the_quarantine(tmp_path: Path, decoded: list[str]) -> None:
    domains = [listed([png((1, 2, 3)), None], [0, 1])]
    prepare(domains, tmp_path)
    again = prepare(domains, tmp_path, run=str(tmp_path / "other"))
    assert len(decoded) == 2 and again[0].quarantined == 2
    assert pq.read_table(tmp_path / "other/quarantine-listed.parquet").num_rows == 2


def test_quarantine_in_a_run_folder_by_uri(tmp_path: Path) -> None:
    prepare([listed([png((1, 2, 3)), None], [0, 1])], tmp_path, run=(tmp_path / "far").as_uri())
    assert (tmp_path / "far/quarantine-listed.parquet").exists()


def test_a_split_without_usable_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"listed: no row of its train split is usable: .*null"):
        prepare([listed([None, None], [0, 1])], tmp_path)


def test_torn_entries_are_made_again(tmp_path: Path, decoded: list[str]) -> None:
    domains = [listed([png((1, 2, 3))], [0])]
    (domain,) = prepare(domains, tmp_path)
    path = Path(domain.tables["train"])
    shard = path / "00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match="no complete image cache"):
        ImageTable.open(str(path))
    prepare(domains, tmp_path)
    assert len(decoded) == 3 and len(ImageTable.open(str(path))) == 1
    (path / "COMPLETE").unlink()
    prepare(domains, tmp_path)
    assert len(decoded) == 4 and len(ImageTable.open(str(path))) == 1


def test_a_damaged_shard_of_the_right_length_is_noticed(tmp_path: Path) -> None:
    (domain,) = prepare([listed([png((1, 2, 3))], [0])], tmp_path)
    shard = Path(domain.tables["train"]) / "00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(IntegrityError, match=r"00000\.arrow"):
        ImageTable.open(domain.tables["train"])


def test_a_failed_preparation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(job: ShardJob) -> shards.ShardResult:
        write_shard(job)
        raise OSError(28, "No space left on device", job.folder)

    domains = [listed([png((1, 2, 3))], [0])]
    with monkeypatch.context() as patched:
        patched.setattr(execution, "write_shard", full)
        with pytest.raises(UserError, match=r"listed, train split: cannot decode: .*No space"):
            prepare(domains, tmp_path)
    assert list((tmp_path / "cache/images").iterdir()) == []
    assert prepare(domains, tmp_path)[0].counts["train"] == 1


def test_leftovers_of_a_killed_preparation_are_swept(tmp_path: Path) -> None:
    dead = tmp_path / "cache/images/preparing-dead"
    alive = tmp_path / "cache/images/preparing-alive"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / "LOCK").touch()
    with (alive / "LOCK").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        prepare([listed([png((1, 2, 3))], [0])], tmp_path)
        assert alive.exists() and not dead.exists()


def test_least_recently_used_entries_make_room(tmp_path: Path) -> None:
    def paths(digest: str, **changes: Any) -> list[Path]:
        images = [np.full((64, 64, 3), 7, np.uint8)] * 4
        (domain,) = prepare([listed(images, [0] * 4, digest)], tmp_path, size=64, **changes)
        return [Path(path) for path in domain.tables.values()]

    old, used, newer = paths("old"), paths("used"), paths("newer")
    for age, group in ((300, old), (200, used), (100, newer)):
        for path in group:
            os.utime(path / "COMPLETE", (0, path.stat().st_mtime - age))
    assert paths("used") == used  # looked at: now the most recent
    entry = sum(file.stat().st_size for path in old for file in path.iterdir())
    fresh = paths("fresh", cache_gib=(3.2 * entry) / 2**30)
    assert all(path.exists() for path in [*used, *newer, *fresh])
    assert not any(path.exists() for path in old)
    # What a process has open is spared, even where it is the least recently used.
    table = ImageTable.open(str(newer[0]))
    for path in newer:
        os.utime(path / "COMPLETE", (0, 0))
    paths("last", cache_gib=(2.6 * entry) / 2**30)
    assert newer[0].exists() and not newer[1].exists() and len(table) == 4
    with pytest.raises(UserError, match=r"cluster\.cache_gib: .* GiB do not hold"):
        paths("too much", cache_gib=(0.9 * entry) / 2**30)


def test_equal_content_under_two_names_is_decoded_once(tmp_path: Path, decoded: list[str]) -> None:
    shutil.copytree(parquet_domain(tmp_path / "data", "d"), tmp_path / "data/e")
    first, second = prepare(open_stream(tmp_path / "data"), tmp_path)
    assert len(decoded) == 2 and first.tables == second.tables
    assert (first.name, second.name) == ("d", "e")


def test_a_source_that_changed_while_it_was_read_is_refused(tmp_path: Path) -> None:
    parquet_domain(tmp_path / "data", "d")
    domains = open_stream(tmp_path / "data")
    path = tmp_path / "data/d/train.parquet"
    pq.write_table(pq.read_table(path).slice(0, 20), path)
    with pytest.raises(UserError, match="hold 20 rows, not the 36 stated"):
        prepare(domains, tmp_path)
    path.write_bytes(b"gone")
    with pytest.raises(UserError, match=r"d, train split: cannot decode: .*train\.parquet"):
        prepare(domains, tmp_path)


@pytest.mark.parametrize(
    ("cache", "reason"), [("nowhere://bucket/x", "cannot open"), ("{f}/x", "cluster")]
)
def test_senseless_cache_folders_are_refused(tmp_path: Path, cache: str, reason: str) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match=rf"cluster\.cache_dir: .*{reason}|{reason}\.cache_dir"):
        prepare([listed([png((1, 2, 3))], [0])], tmp_path, cache_dir=cache.format(f=tmp_path / "f"))


def test_retried_shards_are_the_same_bytes(tmp_path: Path) -> None:
    chunk = ListChunk((png((1, 2, 3)), None, png((3, 2, 1))), (0, 1, 1))
    job = ShardJob(chunk, str(tmp_path), "00000.arrow", 2, 8, 10_000)
    first = write_shard(job)
    data = (tmp_path / "00000.arrow").read_bytes()
    assert write_shard(job) == first
    assert (tmp_path / "00000.arrow").read_bytes() == data and len(data) == first.bytes
    assert [path.name for path in tmp_path.iterdir()] == ["00000.arrow"]
    with pytest.raises(FileNotFoundError, match=r"cluster\.cache_dir"):
        write_shard(ShardJob(chunk, str(tmp_path / "absent"), "0.arrow", 2, 8, 10_000))


def test_marker_is_plain_json(tmp_path: Path) -> None:
    (domain,) = prepare([listed([png((1, 2, 3)), None], [0, 1])], tmp_path)
    folder = Path(domain.tables["train"])
    marker = json.loads((folder / "COMPLETE").read_text())
    assert marker["rows"] == 1 and marker["bad"] == [[1, "no image (null)"]]
    assert sorted(path.name for path in folder.iterdir()) == ["00000.arrow", "COMPLETE"]
    assert pa.ipc.open_file(folder / "00000.arrow").schema.names == ["image", "label", "row"]


def test_two_runs_that_prepare_the_same_agree(tmp_path: Path) -> None:
    entries, chunk = Entries(str(tmp_path)), ListChunk((png((1, 2, 3)),), (0,))
    staged = [entries.begin("key") for _ in range(2)]
    for staging in staged:
        result = write_shard(ShardJob(chunk, str(staging.folder), "00000.arrow", 2, 8, 10_000))
        shard = {"file": result.file, "rows": result.rows, "bytes": result.bytes}
        marker = {"digest": "d", "size": 8, "rows": 1, "bad": [], "shards": [shard]}
        entries.commit("key", staging, marker)
    assert [path.name for path in entries.folder.iterdir()] == ["key"]
    assert len(ImageTable.open(str(entries.path("key")))) == 1
