"""One writer per run: a local lock that dies with its process; `lease.py` is its remote sibling."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import uuid
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from archipelago.pipeline.errors import LockedError, UserError
from archipelago.pipeline.store import documents
from archipelago.pipeline.store.folder import make_folder

LOCK = "LOCK"
GRACE_S = 1.0  # a killed holder keeps its lock until the kernel has taken it apart
Check = Callable[[], None]


def unguarded() -> None:
    """The check of a writer that needs no lock."""


@dataclass(frozen=True)
class Holder:
    """The process that writes to a run. `expires` (seconds since 1970) belongs to leases only."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: str = field(default_factory=lambda: _machine())
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    expires: float | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    def dump(self) -> bytes:
        """As JSON."""
        return documents.dumps(asdict(self))

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """The holder in a lock file, or None where it names none."""
        try:
            document = documents.loads(data)
            known = {item.name for item in fields(cls)}
            holder = cls(**{key: value for key, value in document.items() if key in known})
        except (ValueError, TypeError, AttributeError):
            return None
        texts = holder.host, holder.started, holder.machine, holder.token
        sound = all(isinstance(text, str) for text in texts) and type(holder.pid) is int
        sound = sound and isinstance(holder.expires, int | float | None)
        return holder if sound and {"host", "pid", "token"} <= document.keys() else None

    def is_dead(self) -> bool:
        """Whether it certainly ended: it ran on this very machine and its process is gone."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(int(self.pid), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError, ValueError):
            return False
        return False


class Lock(Protocol):
    """What both kinds of lock offer."""

    holder: Holder

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lock. Raises: LockedError naming the holder after `wait_s` seconds."""

    def release(self) -> None:
        """Give it back."""

    def check(self) -> None:
        """Raises: LockedError when it is no longer held."""


class Guard:
    """Asked before every write to a run: raises when the run is only read, or its lock was lost."""

    def __init__(self, read_only: bool = False):
        self.read_only = read_only
        self.lock: Lock | None = None

    def __call__(self) -> None:
        """Raises: PermissionError when reading; LockedError when the lock was lost."""
        if self.read_only:
            raise PermissionError("this run folder was opened for reading")
        if self.lock is not None:
            self.lock.check()


class LocalLock:
    """`flock` on `path`, which names its holder. The kernel drops it when the process dies."""

    def __init__(self, path: Path, shown: str):
        self.holder = Holder()
        self._path = path
        self._shown = shown
        self._file: int | None = None

    def acquire(self, wait_s: float = 0.0) -> None:
        """See `Lock`."""
        make_folder(self._path.parent)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        start = time.monotonic()
        while not _try(handle, self._shown):
            holder = Holder.parse(os.pread(handle, 4096, 0))
            if time.monotonic() - start >= max(wait_s, GRACE_S):
                os.close(handle)
                who = f"{holder} since {holder.started}" if holder else "an unknown process"
                raise LockedError(f"{self._shown} is in use by {who}")
            time.sleep(0.05)
        os.ftruncate(handle, 0)
        os.pwrite(handle, self.holder.dump(), 0)
        self._file = handle
        _close_in_forks(self)

    def release(self) -> None:
        """See `Lock`."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            self.drop()

    def drop(self) -> None:
        """Close this process' copy of the lock file: what a forked child must do at once."""
        handle, self._file = self._file, None
        if handle is not None:
            os.close(handle)

    def check(self) -> None:
        """See `Lock`. A local lock is lost when its file was removed."""
        try:
            same = self._file is not None and os.path.samestat(
                os.fstat(self._file), self._path.stat()
            )
        except FileNotFoundError:
            same = False
        if not same:
            raise LockedError(f"{self._shown} is no longer locked by {self.holder}")


def _try(handle: int, shown: str) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise UserError(
                f"{shown}: this file system has no locks; use another run_dir"
            ) from None
        raise
    return True


def _close_in_forks(lock: LocalLock) -> None:
    """A forked child shares the open file and would keep the lock after its parent's death."""
    reference = weakref.ref(lock)

    def after_in_child() -> None:
        held: Any = reference()
        if held is not None:
            held.drop()

    os.register_at_fork(after_in_child=after_in_child)


def _machine() -> str:
    """Names this boot and process namespace, within which a pid means something; or empty."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
