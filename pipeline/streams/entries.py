"""The cache folder: complete entries, entries in preparation, and the disk budget over them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams import decode, targets
from archipelago.pipeline.streams.domain import Split
from archipelago.pipeline.streams.files import combine
from archipelago.pipeline.streams.marker import COMPLETE, read_marker
from archipelago.pipeline.streams.selection import Selection

log = logging.getLogger(__name__)

PREPARING = "preparing-"
LOCK = "LOCK"


def entry_key(split: Split, size: int, max_pixels: int) -> str:
    """Folder name of one split's images: everything that decides the pixels is in it."""
    key = f"{split.digest[:32]}-{size}px-{max_pixels}-v{decode.VERSION}"
    if not split.targets:
        return key
    held = combine(*(asdict(target) for target in split.targets))
    return f"{key}-t{targets.VERSION}-{held[:8]}"


@dataclass
class Staging:
    """An entry in preparation, locked as long as its maker lives."""

    folder: Path
    lock: int

    def drop(self) -> None:
        """Remove what is left of it (nothing, once it was committed)."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self.lock)
        self.lock = -1


class Entries:
    """`<cache_dir>/images`, shared by any number of runs on any number of nodes."""

    def __init__(self, cache_dir: str) -> None:
        self.folder = Path(cache_dir).expanduser().resolve() / "images"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cluster.cache_dir: {error.strerror}: {self.folder}") from None
        self._sweep()

    def path(self, key: str) -> Path:
        """Where the entry lies, or would lie."""
        return self.folder / key

    def find(self, key: str) -> dict[str, Any] | None:
        """The marker of a complete entry (now the most recently used), or None."""
        marker = read_marker(self.path(key))
        if marker is not None:
            with contextlib.suppress(OSError):
                os.utime(self.path(key) / COMPLETE)
        return marker

    def begin(self, key: str) -> Staging:
        """Start an entry; its shards go into the returned folder."""
        name = f"{PREPARING}{key}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        new = self.folder / f".{name}"
        new.mkdir()
        lock = os.open(new / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        _try_lock(lock)
        return Staging(new.rename(self.folder / name), lock)  # visible to sweeps only when locked

    def commit(self, key: str, staging: Staging, marker: dict[str, Any]) -> None:
        """Make the entry exist, at once; another run's identical entry is as good as ours."""
        for left in (*staging.folder.glob(".*"), staging.folder / LOCK):  # of attempts that died
            left.unlink(missing_ok=True)
        temporary = staging.folder / f".{COMPLETE}"
        with temporary.open("w") as file:
            json.dump(marker, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(staging.folder / COMPLETE)
        _sync(staging.folder)
        target = self.path(key)
        if read_marker(staging.folder) is None:
            raise UserError(
                f"cluster.cache_dir: shards written by other nodes are missing in {self.folder}; "
                "it must be a folder that every node sees"
            )
        if target.exists() and read_marker(target) is None:
            self._remove(target)  # torn: it would never be used
        try:
            staging.folder.rename(target)
        except OSError:
            if read_marker(target) is None:
                raise
        _sync(self.folder)
        staging.drop()

    def select(self, key: str, selection: Selection) -> str:
        """Keep a selection beside the shards of its table; returns its path."""
        return str(selection.store(self.path(key)))

    def free(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self.folder).free

    def make_room(self, incoming: int, budget: int, keep: set[str]) -> None:
        """Remove least recently used entries until `incoming` more bytes fit the budget."""
        entries = []
        for folder in self.folder.iterdir():
            if not folder.name.startswith((".", PREPARING)):
                with contextlib.suppress(OSError):
                    entries.append((_used(folder), folder, _bytes(folder)))
        total = sum(size for _, _, size in entries) + incoming
        for _, folder, size in sorted(entries):
            if total <= budget:
                return
            if folder.name not in keep and self._remove(folder):
                log.info("image cache over its budget: removed %s (%d bytes)", folder.name, size)
                total -= size
        if total > budget:
            raise UserError(
                f"cluster.cache_gib: {budget / 2**30:.3g} GiB do not hold the decoded images; "
                f"this stream and what other runs have open need {total / 2**30:.3g} GiB"
            )

    def _remove(self, folder: Path) -> bool:
        """Remove an entry unless a process has it open."""
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder / COMPLETE, os.O_RDONLY)
            try:
                if not _try_lock(lock):
                    return False
                (folder / COMPLETE).unlink()
            finally:
                os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def _sweep(self) -> None:
        """Remove preparations whose makers died."""
        for folder in self.folder.glob(f"{PREPARING}*"):
            with contextlib.suppress(OSError):
                lock = os.open(folder / LOCK, os.O_RDWR)
                try:
                    if _try_lock(lock):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """Whether nobody else holds the file (also where the file system has no locks)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("no file locks here: %s", error)
    return True


def _used(folder: Path) -> float:
    try:
        return (folder / COMPLETE).stat().st_mtime
    except OSError:
        return 0.0


def _bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
