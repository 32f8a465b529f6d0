"""Put a folder in the place of another at one stroke."""

from __future__ import annotations

import ctypes
import os
import uuid
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def swap(new: Path, place: Path) -> None:
    """`new` takes `place`; what was there lies at `new` afterwards, or is gone if it was empty.

    Whoever looks sees the old folder or all of the new one. Where the file system cannot exchange
    two folders, there is a moment with neither.
    """
    try:
        new.rename(place)  # a free place, or an empty folder
        return
    except OSError:
        if not place.is_dir():
            raise
    if _exchange(new, place):
        return
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        aside.rename(place)
        raise
    aside.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(function(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)
