"""How far a long job is: a bar where there is a terminal, else a line now and then."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from archipelago.pipeline.pace import EVERY_S, in_words

log = logging.getLogger("archipelago")


class Images:
    """Counts images; use as a context manager.

    Args:
        total: how many there are.
        done: how many of them were done before.
        console: where to show it; None = the one that logs go to.
    """

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        self.total, self.done, self.errors = total, done, 0
        self._before, self._start = done, time.monotonic()
        self._said = self._start
        console = console or get_console()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TextColumn("images{task.fields[rest]}")
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=total, completed=done, rest="")

    def __enter__(self) -> Images:
        """Itself."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Images a second, of those done here."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    def advance(self, images: int, errors: int = 0) -> None:
        """So many more are done, some of which could not be read."""
        self.done += images
        self.errors += errors
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rest=self._rest())
        elif time.monotonic() - self._said >= EVERY_S and self.done < self.total:
            self._said = time.monotonic()
            log.info("%s of %s images%s", f"{self.done:,}", f"{self.total:,}", self._rest())

    def _rest(self) -> str:
        left = (self.total - self.done) / max(self.rate, 1e-9)
        errors = f", {self.errors:,} cannot be read" if self.errors else ""
        return f", {self.rate:.0f} a second, {in_words(left)} left{errors}"
