"""The lock of a run in an object store: an object that names its holder and soon expires."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from pipeline.errors import LockedError
from pipeline.store.folder import Folder
from pipeline.store.lock import LOCK, Holder

log = logging.getLogger(__name__)


class Lease:
    """A lease on `folder`, renewed by a daemon thread every third of `ttl_s`.

    Object stores offer no atomic test-and-set through `pyarrow.fs`: whoever writes its claim waits
    `settle_s` and reads it back, and the last claim wins. Clocks of two machines may differ by
    `skew_s`; a claim that promises more is waited for until it is not renewed. A holder that finds
    another's claim, or none, has lost: `on_lost` is called once (from the renewing thread), and
    `check`, which asks the store, raises from then on.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        ttl_s: float = 60.0,
        settle_s: float = 1.0,
        skew_s: float = 5.0,
        on_lost: Callable[[], None] | None = None,
    ):
        self.holder = Holder()
        self._folder = folder
        self._ttl_s, self._settle_s, self._skew_s = ttl_s, settle_s, skew_s
        self._on_lost = on_lost
        self._valid_until = 0.0  # on the monotonic clock
        self._lost = False
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lease. Raises: LockedError naming the holder after `wait_s` seconds."""
        start = time.monotonic()
        while not self._claim():
            if time.monotonic() - start >= wait_s:
                other = self._read()
                who = f"{other} since {other.started}" if other else "an unknown process"
                raise LockedError(f"{self._folder.shown()} is in use by {who}")
            time.sleep(min(0.5, self._ttl_s / 4))
        self._thread = threading.Thread(target=self._renew, name="run-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing and remove the lease if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost and self._is_ours():
            self._folder.delete(LOCK)

    def check(self) -> None:
        """Raises: LockedError when the lease was lost, or cannot be confirmed and has run out."""
        try:
            if not self._lost and not self._is_ours():
                self._lose()
        except OSError:
            if time.monotonic() > self._valid_until:
                self._lose()
        if self._lost:
            raise LockedError(f"{self._folder.shown()} is no longer leased by {self.holder}")

    def _claim(self) -> bool:
        other = self._read()
        if other is not None and not self._is_over(other):
            return False
        self._write()
        time.sleep(self._settle_s)
        return self._is_ours()

    def _is_over(self, other: Holder) -> bool:
        expires, now = other.expires or 0.0, time.time()
        if now > expires + self._skew_s or other.is_dead():
            return True
        # Its clock is ahead of ours: how far, only waiting can tell.
        return expires > now + self._ttl_s + self._skew_s and self._rests(other)

    def _rests(self, other: Holder) -> bool:
        """Whether a claim is not renewed for as long as ours would last."""
        end = time.monotonic() + self._ttl_s + self._skew_s
        while time.monotonic() < end:
            time.sleep(min(0.5, self._ttl_s / 4))
            current = self._read()
            if current != other:
                return current is None
        return True

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl_s / 3):
            try:
                if not self._is_ours():
                    return self._lose()
                self._write()
            except OSError as error:
                log.warning("cannot renew the lease on %s: %s", self._folder.shown(), error)
                if time.monotonic() > self._valid_until:
                    return self._lose()

    def _lose(self) -> None:
        with self._mutex:
            first, self._lost = not self._lost, True
        if first:
            log.error("the lease on %s was lost; nothing more is written", self._folder.shown())
            if self._on_lost is not None:
                self._on_lost()

    def _write(self) -> None:
        valid_until = time.monotonic() + self._ttl_s
        claim = dataclasses.replace(self.holder, expires=time.time() + self._ttl_s)
        self._folder.write(LOCK, claim.dump())
        self._valid_until = valid_until

    def _read(self) -> Holder | None:
        try:
            return Holder.parse(self._folder.read(LOCK))
        except FileNotFoundError:
            return None

    def _is_ours(self) -> bool:
        current = self._read()
        return current is not None and current.token == self.holder.token
