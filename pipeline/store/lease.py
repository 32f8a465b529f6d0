"""The lock of a run in an object store: an object that names its holder and soon expires."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator

from archipelago.pipeline.errors import LockedError
from archipelago.pipeline.store.conditional import S3Objects, conditional
from archipelago.pipeline.store.folder import Folder
from archipelago.pipeline.store.lock import LOCK, Holder, LocalLock, Lock

log = logging.getLogger(__name__)


CLAIM = f"{LOCK}-"  # and the token of the claimant


def lock_of(
    folder: Folder,
    *,
    ttl_s: float = 60.0,
    settle_s: float = 1.0,
    on_lost: Callable[[], None] | None = None,
) -> Lock:
    """What holds off other writers of `folder`: locally a lock, elsewhere a lease."""
    if folder.local:
        return LocalLock(folder.local / LOCK, folder.shown())
    return Lease(folder, ttl_s=ttl_s, settle_s=settle_s, on_lost=on_lost)


class Lease:
    """A lease on `folder`, renewed by a daemon thread every third of `ttl_s`.

    It is over once it was not renewed for `ttl_s + skew_s` by the store's own clock; clocks of
    machines decide nothing. Where the store writes on a condition, each write replaces exactly what
    was seen before. Elsewhere claimants write a claim each, wait `settle_s`, and the first by the
    store's times takes the lease; where it tells no times, the last to write it. A holder that
    finds another's lease, or none, has lost: `on_lost` is called once (from the renewing thread),
    and `check`, which asks the store, raises from then on.
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
        self._term_s = ttl_s + skew_s
        self._claim_name = CLAIM + self.holder.token
        self._ahead_s: float | None = None  # of the store's clock, before the monotonic one
        self._conditional: S3Objects | None = None
        self._tag: str | None = None  # of the lease as it was last seen, or written
        self._rival: Holder | None = None  # who claimed first

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lease. Raises: LockedError naming the holder after `wait_s` seconds."""
        start = time.monotonic()
        self._ask_the_store()
        while not self._claim():
            if time.monotonic() - start >= wait_s:
                other = self._read() or self._rival
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

    def _ask_the_store(self) -> None:
        """What time it is there, and whether it writes on a condition."""
        with self._claimed():
            now = time.monotonic()
            written = self._folder.modified(self._claim_name)
            self._ahead_s = None if written is None else written - now
            self._conditional = conditional(self._folder, self._claim_name)

    def _claim(self) -> bool:
        if self._conditional is not None:
            self._tag = self._conditional.tag(LOCK)  # before it is read: a later one is not ours
        other = self._read()
        if other is not None and not self._is_over(other):
            return False
        if self._conditional is not None:
            return self._write()
        with self._claimed():
            time.sleep(self._settle_s)
            if not self._is_first() or self._read() != other:
                return False
            self._write()
        if self._ahead_s is None:
            time.sleep(self._settle_s)
        return self._is_ours()

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        self._folder.write(self._claim_name, self.holder.dump())
        try:
            yield
        finally:
            self._folder.delete(self._claim_name)

    def _is_first(self) -> bool:
        """Whether no claim is older than ours; those of claimants that were killed are removed."""
        times = {name: self._folder.modified(name) for name in self._folder.list(CLAIM)}
        ours = times.get(self._claim_name)
        if ours is None:
            return self._ahead_s is None  # no times, or it took so long that others removed it
        first = ours, self._claim_name
        for name, written in times.items():
            if written is None or ours - written > self._term_s:
                self._folder.delete(name)
            else:
                first = min(first, (written, name))
        self._rival = self._holder_in(first[1])
        return first[1] == self._claim_name

    def _is_over(self, other: Holder) -> bool:
        if other.is_dead():
            return True
        written = self._folder.modified(LOCK)
        age_s = 0.0
        if written is not None and self._ahead_s is not None:
            age_s = max(0.0, time.monotonic() + self._ahead_s - written)
        if age_s > self._term_s:
            return True
        # By our clock it just ended, or lasts longer than leases do: only waiting can tell.
        left_s = (other.expires or 0.0) - time.time()
        plausible = -self._skew_s <= left_s <= self._term_s
        return not plausible and self._rests(other, self._term_s - age_s)

    def _rests(self, other: Holder, for_s: float) -> bool:
        """Whether a lease is not renewed for so long."""
        end = time.monotonic() + for_s
        while time.monotonic() < end:
            time.sleep(min(0.5, self._ttl_s / 4))
            current = self._read()
            if current != other:
                return current is None
        return True

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl_s / 3):
            try:
                if not self._is_ours() or not self._write():
                    return self._lose()
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

    def _write(self) -> bool:
        """Write the lease; False where another did since it was last seen."""
        valid_until = time.monotonic() + self._ttl_s
        claim = dataclasses.replace(self.holder, expires=time.time() + self._ttl_s).dump()
        if self._conditional is None:
            self._folder.write(LOCK, claim)
        else:
            tag = self._conditional.put(LOCK, claim, self._tag)
            if tag is None:
                return False
            self._tag = tag
        self._valid_until = valid_until
        return True

    def _read(self) -> Holder | None:
        return self._holder_in(LOCK)

    def _holder_in(self, name: str) -> Holder | None:
        try:
            return Holder.parse(self._folder.read(name))
        except FileNotFoundError:
            return None

    def _is_ours(self) -> bool:
        current = self._read()
        return current is not None and current.token == self.holder.token
