"""Lines about a long step."""

from __future__ import annotations

import logging

import pytest

from archipelago.pipeline.pace import Pace, in_words


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


def test_what_is_quick_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "archipelago"):
        Pace("decoding", 10).step(10)
    assert not caplog.records


def test_durations_as_one_says_them() -> None:
    assert [in_words(s) for s in (0.2, 80, 600, 11_100)] == ["1 s", "80 s", "10 min", "3 h 5 min"]
