"""A writer is killed with SIGKILL at random moments; whatever is listed afterwards is whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from archipelago.pipeline.store import RunFolder, sha256

ROOT = Path(__file__).parents[2]
KILLS = 15  # more, up to four times as many, until one of them hit a group in mid-write


def content(stage: int, file: str) -> bytes:
    """Bytes of a group's file: a pure function, so that every attempt must write the same."""
    return random.Random(f"{stage}/{file}").randbytes(40_000)


WRITER = """
import itertools, sys
sys.path.insert(0, "tests/fault")
from test_store_kill import content
from archipelago.pipeline.store import RunFolder

run = RunFolder(sys.argv[1])
files = ("group.safetensors", "identity.safetensors", "probe.safetensors", "task.bin")
facts = {"backbone": {"name": "x"}, "stream": {"tasks": ["a"]}}
with run.lock():
    sys.stdout.write("writing\\n"); sys.stdout.flush()
    run.open_run({"seed": 0}, facts)
    done = run.completed_stages()
    run.journal.append("run-started", found=len(done))
    for stage in itertools.count():
        if stage in done:
            continue
        run.journal.append("stage-started", stage=stage)
        group = {file: content(stage, file) for file in files}
        group["task.json"] = b'{"tasks": [{"name": "t%d"}], "neighbours": []}' % stage
        done[stage] = run.groups.write(stage, f"t{stage}", group)
        manifest = run.models.publish(done.values())
        sha = done[stage].sha256
        run.journal.append("stage-done", stage=stage, sha256=sha, manifest=manifest)
"""


def test_nothing_torn_is_ever_seen(tmp_path: Path) -> None:
    place, delays = tmp_path / "run", random.Random(0)
    seen: dict[int, str] = {}
    uncommitted = 0
    for kill in range(4 * KILLS):
        if kill >= KILLS and seen and uncommitted:
            break
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert child.stdout is not None and child.stdout.readline() == b"writing\n"
        time.sleep(delays.uniform(0.02, 0.3))
        assert child.poll() is None, "the writer failed by itself"
        child.send_signal(signal.SIGKILL)
        child.communicate()

        run = RunFolder(str(place))
        events = run.journal.events()
        assert [event["number"] for event in events] == list(range(1, len(events) + 1))
        assert len(events) == len(run.folder.list("journal/"))
        listed = run.groups.list()
        for ref in listed:
            run.groups.verify(ref)
            stored = run.groups.files(ref)["group.safetensors"]
            assert stored == sha256(content(ref.stage, "group.safetensors"))
            assert run.groups.read(ref, "task.bin") == content(ref.stage, "task.bin")
        uncommitted += len(run.folder.list("groups/")) - len(listed)
        done = {stage: ref.sha256 for stage, ref in run.completed_stages().items()}
        assert seen.items() <= done.items(), "a finished stage was lost"
        assert list(done) == list(range(len(done)))
        seen = done
        versions = run.models.versions()
        assert versions == list(range(1, len(versions) + 1))
        for version in versions:
            manifest = run.models.read(version)
            assert [ref.stage for ref in manifest.groups] == list(range(version))
            assert set(manifest.groups) <= set(listed)
    assert len(seen) > 0, "no kill came late enough to find a finished stage"
    assert uncommitted > 0, "no kill hit a group in mid-write"
