"""How jobs end: one code for each kind of end, one line for each mistake."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.errors import LockedError, Refused, Stopped, UserError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (UserError("[key]: wrong"), 2, "job: [key]: wrong\n"),
        (Refused("no"), 2, "job: no\n"),
        (LockedError("by 7"), 3, "job: by 7\n"),
        (Stopped(), 143, "job: stopped; the same command continues\n"),
        (OSError("disk"), 1, ""),
    ],
)
def test_every_end_has_its_code(
    error: BaseException | None,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    @exit_codes("job", "it failed")
    def main(arguments: Sequence[str]) -> int:
        assert arguments == ["word"]
        if error is not None:
            raise error
        return 0

    with caplog.at_level(logging.ERROR, "archipelago"):
        assert main(["word"]) == code
    assert capsys.readouterr().err == said
    assert [record.message for record in caplog.records] == ["it failed"] * (code == 1)


def test_without_words_for_it_a_failure_is_raised_on() -> None:
    @exit_codes("job")
    def main(arguments: Sequence[str]) -> int:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        main([])
