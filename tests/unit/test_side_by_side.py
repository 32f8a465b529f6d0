"""Several processes at a time: all done, or the first mistake in its own words; nothing is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from archipelago.actors.side_by_side import run_side_by_side
from archipelago.pipeline.errors import LockedError, Stopped, UserError


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_so_many_run_at_a_time_and_share_the_cores(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "mine = here / f'now-{os.getpid()}'\n"
        "mine.touch(); time.sleep(0.3); many = len(list(here.glob('now-*'))); mine.unlink()\n"
        "(here / f'done-{os.getpid()}').write_text(f'{many} ' + os.environ['OMP_NUM_THREADS'])\n"
    )
    done: list[str] = []
    run_side_by_side({f"part {i}": _python(code) for i in range(5)}, 2, 3, done.append)
    assert sorted(done) == [f"part {i}" for i in range(5)]
    said = [path.read_text().split() for path in tmp_path.glob("done-*")]
    assert len(said) == 5 and {threads for _, threads in said} == {"3"}
    assert max(int(many) for many, _ in said) == 2


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (2, UserError, r"^stream\.root: nothing there$"),
        (3, LockedError, "nothing there"),
        (1, RuntimeError, r"bad ended with exit code 1: .*bad\.log$"),
    ],
)
def test_a_mistake_is_told_in_its_words(code: int, kind: type[Exception], words: str) -> None:
    bad = f"print('some'); print('compare: stream.root: nothing there'); raise SystemExit({code})"
    done: list[str] = []
    commands = {"bad": _python(bad), "good": _python("import time; time.sleep(1)"), "later": ["no"]}
    with pytest.raises(kind, match=words):
        run_side_by_side(commands, 2, 1, done.append)
    assert done == ["good"], "what was under way ended, what had not begun did not"


def test_a_signal_stops_all_of_them(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r}) / sys.argv[1]\n"
        "def stop(*_): here.write_text('stopped'); raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, stop); here.touch(); time.sleep(60)\n"
    )
    names = ("a", "b")

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not all((tmp_path / name).exists() for name in names) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    other = threading.Thread(target=interrupt)
    other.start()
    try:
        with pytest.raises(Stopped):
            commands = {name: [*_python(code), name] for name in (*names, "c")}
            run_side_by_side(commands, 2, 1, lambda name: None)
    finally:
        other.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [(tmp_path / name).read_text() for name in names] == ["stopped", "stopped"]
    assert not (tmp_path / "c").exists()
