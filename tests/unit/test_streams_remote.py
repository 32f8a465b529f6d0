"""Decoded images in an object store, here a `file://` address, and each node's copies of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.streams import ImageTable, PreparedDomain, open_stream, prepare
from archipelago.pipeline.streams.remote import (
    NODE_CACHE,
    NODE_CACHE_GIB,
    above,
    below,
    drop_copies,
    local_copy,
)
from tests.helpers import parquet_domain


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Become the node of that name: a folder of copies of its own."""

    def become(name: str) -> Path:
        monkeypatch.setenv(NODE_CACHE, str(tmp_path / name))
        return tmp_path / name / "images"

    return become


def decode(base: Path, cache: str, **options: Any) -> PreparedDomain:
    if not (base / "data").exists():
        parquet_domain(base / "data", "d")
    settings = StreamSettings(reader="parquet", root=str(base / "data"), options=options)
    (domain,) = prepare(
        open_stream(settings, 0),
        size=8,
        run=str(base / "run"),
        cache_dir=cache,
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )
    return domain


def test_every_node_reads_the_same_images_from_copies_of_its_own(
    tmp_path: Path, nodes: Any
) -> None:
    here = decode(tmp_path, str(tmp_path / "cache"))
    first = nodes("first")
    there = decode(tmp_path, f"file://{tmp_path}/store")
    assert not (tmp_path / "store/images/decoding").exists()
    assert list((first.parent / "decoding").iterdir()) == []
    assert (there.counts, there.digests) == (here.counts, here.digests)
    second = nodes("second")
    for split, path in there.tables.items():
        copy, original = ImageTable.open(path), ImageTable.open(here.tables[split])
        every = np.arange(len(original))
        assert (copy.images(every) == original.images(every)).all()
        assert (copy.labels == original.labels).all()
    del copy
    copies = [file for entry in second.iterdir() if entry.is_dir() for file in entry.iterdir()]
    assert sorted({file.name for file in copies}) == ["00000.arrow", "COMPLETE"]
    # Once copied, the store is not asked; a copy that is torn is made again.
    shutil.move(tmp_path / "store", tmp_path / "away")
    assert len(ImageTable.open(there.tables["test"])) == here.counts["test"]
    shard = Path(local_copy(there.tables["test"])) / "00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="run again to prepare it"):
        ImageTable.open(there.tables["test"])
    shutil.move(tmp_path / "away", tmp_path / "store")
    assert len(ImageTable.open(there.tables["test"])) == here.counts["test"]


def test_what_is_there_is_not_decoded_again(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes("first")
    first = decode(tmp_path, f"file://{tmp_path}/store")
    monkeypatch.setattr(
        "archipelago.pipeline.streams.cache._decode", lambda *a: pytest.fail("decoded again")
    )
    nodes("second")
    assert decode(tmp_path, f"file://{tmp_path}/store") == first


def test_parts_of_a_domain_lie_beside_its_images(tmp_path: Path, nodes: Any) -> None:
    nodes("first")
    part = decode(tmp_path, f"file://{tmp_path}/store", shots=2)
    expected = ImageTable.open(decode(tmp_path, str(tmp_path / "cache"), shots=2).tables["train"])
    nodes("second")
    table = ImageTable.open(part.tables["train"])
    assert (table.rows == expected.rows).all() and (table.labels == expected.labels).all()
    assert table.digest == expected.digest


def test_the_least_recently_used_copy_makes_room(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes("first")
    domain = decode(tmp_path, f"file://{tmp_path}/store")
    folder = nodes("second")
    size = json.loads((local_copy(domain.tables["train"]) / "COMPLETE").read_text())
    held = sum(shard["bytes"] for shard in size["shards"])
    monkeypatch.setenv(NODE_CACHE_GIB, str((held + 1000) / 2**30))
    local_copy(domain.tables["test"])
    assert [entry.name for entry in folder.iterdir() if entry.is_dir()] == [
        Path(domain.tables["test"]).name
    ]
    monkeypatch.setenv(NODE_CACHE_GIB, "1e-9")
    with pytest.raises(UserError, match=r"cluster\.cache_gib"):
        local_copy(domain.tables["train"])


def test_copies_go_with_the_domain(tmp_path: Path, nodes: Any) -> None:
    folder = nodes("first")
    domain = decode(tmp_path, f"file://{tmp_path}/store")
    kept, gone = (local_copy(domain.tables[split]) for split in ("train", "test"))
    assert drop_copies(domain.digests["test"]) == [gone.name]
    assert kept.exists() and not gone.exists() and folder.exists()


def test_addresses_keep_their_query() -> None:
    uri = "s3://key:secret@bucket/runs/a%20b?scheme=http&region=x"
    assert below(uri, "c d") == "s3://key:secret@bucket/runs/a%20b/c%20d?scheme=http&region=x"
    assert above(below(uri, "c d")) == (uri, "c d")
