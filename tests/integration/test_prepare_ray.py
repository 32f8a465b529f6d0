"""Decoding on a real local Ray gives what decoding in process gives, and survives lost workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import ClusterSettings, StreamSettings, WorkerSettings
from archipelago.pipeline.streams import (
    DenseTable,
    Domain,
    ImageTable,
    PreparedDomain,
    RawRow,
    Split,
    open_stream,
    prepare,
)
from tests.helpers import parquet_domain, png

CLUSTER = ClusterSettings(data=WorkerSettings(num_workers=2, num_cpus=0.25), timeout_s=60)


def prepared(
    domains: list[Domain], base: Path, use_ray: bool, **changes: Any
) -> list[PreparedDomain]:
    base = base / ("ray" if use_ray else "process")
    return prepare(
        domains,
        **{
            "size": 8,
            "run": str(base / "run"),
            "cache_dir": str(base / "cache"),
            "cache_gib": 1.0,
            "cluster": CLUSTER,
            "max_pixels": 10_000,
            "use_ray": use_ray,
            **changes,
        },
    )


def spoil(folder: Path) -> None:
    """Replace some training rows by what nobody can use."""
    table = pq.read_table(folder / "train.parquet")
    rows = table.to_pylist()
    rows[1]["image"]["bytes"] = b"this is no image"
    rows[20]["image"]["bytes"] = rows[20]["image"]["bytes"][:80]
    rows[300]["image"] = None
    rows[301]["image"]["bytes"] = png((1, 2, 3), size=200)
    rows[400]["label"] = None
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "train.parquet")


def test_ray_gives_the_same_tables_and_quarantine(tmp_path: Path, local_ray: str) -> None:
    spoil(parquet_domain(tmp_path / "data", "one", train=150))
    parquet_domain(tmp_path / "data", "two")
    domains = open_stream(StreamSettings(reader="parquet", root=str(tmp_path / "data")), 0)
    assert len(domains[0].splits["train"].chunks) > 1
    scenes = StreamSettings(reader="scenes", options={"train": 3, "test": 2})
    domains += open_stream(scenes, 0, dense=True)
    here, there = (prepared(domains, tmp_path, use_ray) for use_ray in (False, True))
    counts = [{"train": 445, "test": 18}, {"train": 36, "test": 18}, *[{"train": 3, "test": 2}] * 5]
    assert [d.counts for d in there] == counts
    assert [d.quarantined for d in there] == [5, 0, 0, 0, 0, 0, 0]
    for one, other in zip(here, there, strict=True):
        for split in ("train", "test"):
            a, b = ImageTable.open(one.tables[split]), ImageTable.open(other.tables[split])
            everything = np.arange(len(a))
            assert (a.images(everything) == b.images(everything)).all()
            assert a.labels.tolist() == b.labels.tolist() and a.rows.tolist() == b.rows.tolist()
            if one.kind is not None:
                dense = DenseTable.open(one.tables[split]), DenseTable.open(other.tables[split])
                c, d = (table.targets(one.name, everything) for table in dense)
                assert (c == d).all() and dense[1].usable(one.name).all()
    name = "run/quarantine-one.parquet"
    found = pq.read_table(tmp_path / "ray" / name)
    assert found.equals(pq.read_table(tmp_path / "process" / name))
    assert found["row"].to_pylist() == [1, 20, 300, 301, 400]


class Deadly:
    """Stands for bytes whose decoding takes the whole process down."""

    def __len__(self) -> int:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def deadly_domain(deadly: set[int]) -> Domain:
    good = png((200, 10, 10))

    class Chunk:
        def rows(self) -> Iterator[RawRow]:
            for i in range(6):
                yield RawRow(i, Deadly() if i in deadly else good, i % 2)  # type: ignore[arg-type]

    class Fine(Chunk):
        def rows(self) -> Iterator[RawRow]:
            return (RawRow(i, good, i % 2) for i in range(6))

    splits = {
        "train": Split("train", (Chunk(),), 6, "deadly"),
        "test": Split("test", (Fine(),), 6, "fine"),
    }
    return Domain("deadly", ("x", "y"), ("{}",), splits, "generated", "CC0")


def test_a_row_that_kills_its_worker_is_quarantined(tmp_path: Path, local_ray: str) -> None:
    (domain,) = prepared([deadly_domain({3})], tmp_path, use_ray=True)
    assert domain.counts == {"train": 5, "test": 6}
    (bad,) = pq.read_table(tmp_path / "ray/run/quarantine-deadly.parquet").to_pylist()
    assert bad == {
        "task": "deadly",
        "split": "train",
        "row": 3,
        "reason": "decoding it killed 2 workers",
        "file": None,
    }
    names = sorted(path.name for path in Path(domain.tables["train"]).iterdir())
    assert names == ["00000.arrow", "COMPLETE"]


def test_an_unreadable_source_is_one_line_and_leaves_nothing(
    tmp_path: Path, local_ray: str
) -> None:
    folder = parquet_domain(tmp_path / "data", "d")
    domains = open_stream(StreamSettings(reader="parquet", root=str(tmp_path / "data")), 0)
    (folder / "train.parquet").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"d, train split: cannot decode") as caught:
        prepared(domains, tmp_path, use_ray=True)
    assert "\n" not in str(caught.value)
    left = [path.name for path in (tmp_path / "ray/cache/images").iterdir()]
    assert not any(name.startswith("preparing-") for name in left)
