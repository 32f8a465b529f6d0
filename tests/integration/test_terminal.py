"""What somebody sees who starts a run at a terminal: bars, drawn by the driver for its workers."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.running import DECODED_HERE, ROOT, arguments, write_stream


@pytest.mark.timeout(600)
def test_training_in_a_worker_is_a_bar_at_the_terminal(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream")
    shorter = "training.steps=40", "tracking=off", "cluster.encode.num_workers=0", DECODED_HERE
    words = arguments(stream, tmp_path / "run", ["amber"], *shorter)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 120))
    process = subprocess.Popen(
        [sys.executable, "jobs/sequence.py", *words],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # nobody has the other end any more
                break
            shown += data
            if not data:
                break
    finally:
        process.kill()
        os.close(ours)
    text = shown.decode(errors="replace")
    assert process.wait() is not None
    assert "stage 0 amber:" in text and "steps/s" in text, text
    assert "stage 0 amber: step 40/40" in text, "figures are still lines"
    assert "magic_token" not in text
