"""Lines about a long step."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from archipelago.pipeline.pace import BARS, Pace, in_words


def test_a_line_now_and_then_with_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    pace = Pace("decoding", 4000, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "archipelago"):
        for seconds, count in ((1, 100), (11, 1100), (12, 100), (22, 900), (40, 1800)):
            now[0] = seconds
            pace.step(count)
    assert [record.getMessage() for record in caplog.records] == [
        "decoding: 1,200 of 4,000 images, 109 a second, 26 s left",
        "decoding: 2,200 of 4,000 images, 100 a second, 18 s left",
    ]


def test_what_was_done_before_and_what_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    pace = Pace("answers", 10_000, done=2_000, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "archipelago"):
        for _ in range(30):
            now[0] += 1.0
            pace.step(100, 1)
    assert caplog.messages == [
        "answers: 3,000 of 10,000 images, 100 a second, 70 s left, 10 cannot be read",
        "answers: 4,000 of 10,000 images, 100 a second, 60 s left, 20 cannot be read",
        "answers: 5,000 of 10,000 images, 100 a second, 50 s left, 30 cannot be read",
    ]


def test_a_bar_where_a_terminal_is_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    monkeypatch.setenv(BARS, "1")
    now = [0.0]
    pace = Pace("answers", 50, done=10, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "archipelago"):
        for _ in range(40):
            now[0] += 0.5
            pace.step(1)
    assert not caplog.messages
    shown = capfd.readouterr().err
    assert "answers:" in shown and "40.0/40.0" in shown and "images/s" in shown


def test_what_is_quick_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "archipelago"):
        Pace("decoding", 10).step(10)
    assert not caplog.records


def test_durations_as_one_says_them() -> None:
    assert [in_words(s) for s in (0.2, 80, 600, 11_100)] == ["1 s", "80 s", "10 min", "3 h 5 min"]
