"""Of Ray's lines, only what a person can use."""

from __future__ import annotations

import logging
import logging.config

import pytest

from archipelago.actors import logs


@pytest.mark.parametrize("name", logs.CHATTER)
def test_chatter_stays_away_also_after_ray_train_has_set_up_its_loggers(name: str) -> None:
    quiet, seen = logging.getLogger(name), []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logs._set_levels()
    package = name.rpartition("._internal")[0]
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "loggers": {package: {"level": "INFO"}}}
    )
    handler = Keep()
    quiet.addHandler(handler)
    try:
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            quiet.log(level, "%d", level)
    finally:
        quiet.removeHandler(handler)
    wanted = [level for level in (20, 30, 40) if level >= logs.CHATTER[name]]
    assert seen == [str(level) for level in wanted]
