"""SIGKILL in the middle of decoding: nothing torn looks complete, the next attempt succeeds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.streams import ImageTable, open_stream, prepare
from tests.helpers import parquet_domain

VICTIM = """
import sys, time
from pathlib import Path
from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.streams import execution, open_stream, prepare

write, done = execution.write_shard, []

def slow(job):
    if len(done) == 2:  # one of three shards of the second split to go
        Path(sys.argv[2], "reached").touch()
        time.sleep(600)
    done.append(job)
    return write(job)

execution.write_shard = slow
domains = open_stream(StreamSettings(reader="parquet", root=sys.argv[1]), 0)
prepare(domains, size=8, run=sys.argv[2], cache_dir=sys.argv[2], cache_gib=1.0,
        cluster=ClusterSettings(), max_pixels=10_000, use_ray=False)
"""


def test_killed_preparation_is_taken_up_again(tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    work.mkdir()
    parquet_domain(data, "d", classes=2, train=100, test=300)  # 1 shard and 3 shards
    command = [sys.executable, "-c", VICTIM, str(data), str(work)]
    victim = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 120
        while not (work / "reached").exists():
            assert victim.poll() is None and time.monotonic() < deadline, "it never got there"
            time.sleep(0.05)
    finally:
        victim.kill()
        victim.wait()
    images = work / "images"
    left = sorted(path.name for path in images.iterdir())
    assert sum(name.startswith("preparing-") for name in left) == 1
    (finished,) = [name for name in left if not name.startswith("preparing-")]
    stamp = (images / finished / "00000.arrow").stat().st_mtime_ns
    (domain,) = prepare(
        open_stream(StreamSettings(reader="parquet", root=str(data)), 0),
        **{"size": 8, "run": str(work), "cache_dir": str(work), "cache_gib": 1.0},
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )
    assert not any(path.name.startswith("preparing-") for path in images.iterdir())
    assert [len(ImageTable.open(domain.tables[s])) for s in ("train", "test")] == [200, 600]
    assert (images / finished / "00000.arrow").stat().st_mtime_ns == stamp, "decoded twice"
