"""How far a long step is: a bar where somebody watches a terminal, else a line now and then.

Most steps run in worker processes. What they print Ray passes on to the driver, which draws their
bars below its lines; what is quick shows nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

BARS = "ARCHIPELAGO_BARS"  # in the environment of the driver and its workers: bars, not lines
EVERY_S = 10.0  # between lines
BAR_AFTER_S = 1.0


class Pace:
    """Counts what is done of a step.

    Args:
        what: the step, as `decoding`.
        total: how many there are.
        unit: of what.
        done: how many of them were done before.
        lines: false where the step has lines of its own.
        clock: seconds.

    Attributes:
        done: how many are done.
        errors: how many of them could not be read.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "images",
        done: int = 0,
        lines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self.done, self.errors = done, 0
        self._before, self._lines = done, lines
        self._began = self._said = clock()
        self._bar: Any = None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._began

    def step(self, count: int, errors: int = 0) -> None:
        """So many more are done, some of which could not be read."""
        self.done += count
        self.errors += errors
        if BARS in os.environ:
            self._draw()
        elif self._lines:
            self._say()

    def _say(self) -> None:
        now = self._clock()
        here = self.done - self._before
        if now - self._said < EVERY_S or self.done >= self._total or not here:
            return
        self._said = now
        rate = here / (now - self._began)
        log.info(
            "%s: %s of %s %s, %s a second, %s left%s",
            self._what,
            f"{self.done:,}",
            f"{self._total:,}",
            self._unit,
            f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
            in_words((self._total - self.done) / rate),
            f", {self.errors:,} cannot be read" if self.errors else "",
        )

    def _draw(self) -> None:
        over = self.done >= self._total
        if self._bar is None:
            if over or self.seconds < BAR_AFTER_S:
                return
            from ray.experimental import tqdm_ray

            total = self._total - self._before
            self._bar = tqdm_ray.tqdm(desc=self._what, total=total, unit=f" {self._unit}")
        self._bar.n = self.done - self._before
        if over:
            self._bar.close()
        else:
            self._bar.refresh()


@contextmanager
def bars_aside() -> Iterator[None]:
    """Print a line without drawing it through the bars of this process."""
    tqdm_ray = sys.modules.get("ray.experimental.tqdm_ray")
    if tqdm_ray is None:
        yield
        return
    tqdm_ray.instance().hide_bars()
    try:
        yield
    finally:
        tqdm_ray.instance().unhide_bars()


def in_words(seconds: float) -> str:
    """A duration as one says it: `48 s`, `12 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
