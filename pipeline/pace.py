"""How far a long step is: a line now and then, with the rate and the time that is left.

Lines, because most steps run in worker processes, whose output Ray passes on; what takes less than
`EVERY_S` says nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY_S = 10.0


class Pace:
    """Counts what is done of a step.

    Args:
        what: the step, as `decoding`.
        total: how many there are.
        unit: of what.
        clock: seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "images",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._done = 0
        self._began = self._said = clock()

    def step(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = self._clock()
        if now - self._said < EVERY_S or self._done >= self._total:
            return
        self._said = now
        rate = self._done / (now - self._began)
        if rate:
            log.info(
                "%s: %s of %s %s, %s a second, %s left",
                self._what,
                f"{self._done:,}",
                f"{self._total:,}",
                self._unit,
                f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
                in_words((self._total - self._done) / rate),
            )


def in_words(seconds: float) -> str:
    """A duration as one says it: `48 s`, `12 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
