"""SIGTERM and Ctrl-C end a job in order: as an exception, where they strike."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from archipelago.pipeline.errors import Stopped

STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Hears signals and raises `Stopped`.

    An exception does not end a wait in Ray's core, so all long waits are on futures; out of a
    short one comes another exception, so the signal is kept as well.

    Attributes:
        heard: the name of the one that came, if any.
    """

    def __init__(self) -> None:
        self.heard: str | None = None

    def listen(self) -> None:
        """Begin, or take over again from whoever put a handler there since."""
        for number in STOPS:
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        self.heard = signal.Signals(number).name
        raise Stopped(self.heard)

    def insist(self, error: BaseException | None) -> None:
        """What ended with an error after a signal came was stopped, whatever the error says.

        Raises:
            Stopped: so it is.
        """
        if self.heard and isinstance(error, Exception):
            raise Stopped(self.heard) from error

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for as long as it lasts; then handlers are what they were."""
        before = {number: signal.getsignal(number) for number in STOPS}
        self.listen()
        try:
            yield
        finally:
            if self.heard is None:  # else deaf until the process ends, as it is about to
                for number, handler in before.items():
                    signal.signal(number, handler)
