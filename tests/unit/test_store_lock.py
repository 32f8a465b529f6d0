from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from archipelago.pipeline.errors import LockedError
from archipelago.pipeline.store import Holder, RunFolder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from archipelago.pipeline.store import RunFolder
with RunFolder(sys.argv[1]).lock():
    sys.stdout.write("locked\\n"); sys.stdout.flush()
    sys.stdin.readline()
"""


@contextlib.contextmanager
def other_process(place: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "locked\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_second_process_is_refused_with_the_holders_name(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    with other_process(tmp_path / "run") as child:
        with (
            pytest.raises(LockedError, match=f"in use by {socket.gethostname()}:{child.pid} "),
            run.lock(),
        ):
            pass
        child.communicate("\n", timeout=20)
        assert child.returncode == 0
        with run.lock():
            pass


def test_a_killed_holder_never_blocks(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    with other_process(tmp_path) as child:
        child.send_signal(signal.SIGKILL)
        with run.lock() as holder:  # not waited for: the lock itself waits for a dying holder
            stored = Holder.parse((tmp_path / "LOCK").read_bytes())
            assert stored == holder and holder.pid == os.getpid() != child.pid


def test_waiting_for_the_lock(tmp_path: Path) -> None:
    with other_process(tmp_path) as child:
        assert child.stdin is not None
        start = time.monotonic()
        with pytest.raises(LockedError), RunFolder(str(tmp_path)).lock(wait_s=0.4):
            pass
        assert 0.4 <= time.monotonic() - start < 3
        child.stdin.write("\n")
        child.stdin.flush()
        with RunFolder(str(tmp_path)).lock(wait_s=20):
            pass


def test_same_process_is_refused_too_and_references_share_the_lock(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    with run.lock():
        with pytest.raises(LockedError, match=f":{os.getpid()} "), RunFolder(run.uri).lock():
            pass
        run.reference("finetune").journal.append("run-started")
        with run.reference("finetune").lock():
            pass
        run.journal.append("run-started")
        (tmp_path / "LOCK").unlink()
        for target in (run, run.reference("finetune")):
            with pytest.raises(LockedError, match="no longer locked"):
                target.journal.append("stopped")
            with pytest.raises(LockedError, match="no longer locked"):
                target.groups.write(0, "a", {"group.safetensors": b""})
    assert (tmp_path / "groups").exists() is False


def test_released_after_an_error(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with RunFolder(run.uri).lock():
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    with RunFolder(str(tmp_path)).lock():
        child = os.fork()
        if child == 0:
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
    try:
        with RunFolder(str(tmp_path)).lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


def test_rubbish_in_the_lock_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_bytes(b"\x00not json")
    with RunFolder(str(tmp_path)).lock():
        pass


def test_holder_knows_the_dead_of_this_machine_only() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert Holder(pid=gone.pid).is_dead()
    assert not Holder(pid=gone.pid, machine="another boot").is_dead()
    assert not Holder(pid=gone.pid, machine="").is_dead()
    assert not Holder().is_dead()
    assert Holder.parse(b"[]") is None and Holder.parse(b"{}") is None
    holder = Holder(expires=3.5)
    assert Holder.parse(holder.dump()) == holder
