"""All files below a folder, each with its fate: used, left out with a reason, or known junk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from archipelago.pipeline.streams.files import Entry, Root, shown

LARGEST = 512 * 2**20  # bytes of a file that may be an image: 50 megapixels of 16 bits are 300 MB


@dataclass
class Walk:
    """What lies below a folder; paths are below the root.

    Attributes:
        files: to be used, those of a folder before those of its subfolders.
        faults: (path, why it cannot be read as a file).
        junk: left behind by systems and tools, whole folders as one.
    """

    files: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    junk: list[str] = field(default_factory=list)

    def extend(self, other: Walk) -> None:
        """Append what another walk has found."""
        self.files += other.files
        self.faults += other.faults
        self.junk += other.junk

    @property
    def visible_junk(self) -> list[str]:
        """Junk that a person sees beside the images: files without a leading dot."""
        return [path for path in self.junk if not path.endswith("/") and _plain(path)]


def walk(root: Root, folder: str) -> Walk:
    """Everything below `folder`. Linked folders count, unless they lead to one above.

    Raises:
        UserError: a folder cannot be listed.
    """
    found = Walk()
    for path, entry in below(root, folder):
        fault = entry.fault or too_large(entry)
        if entry.junk:
            found.junk.append(f"{path}/" if entry.folder else path)
        elif fault:
            found.faults.append((path, fault))
        else:
            found.files.append(path)
    return found


def below(root: Root, folder: str) -> Iterator[tuple[str, Entry]]:
    """Each file below `folder` as (path below the root, entry), folder by folder.

    A folder's files come before its subfolders, each sorted by name. Junk folders are not entered
    and come themselves; so do links to a folder above, with that as their fault.

    Raises:
        UserError: a folder cannot be listed.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, ())]
    while waiting:
        place, above = waiting.pop()
        above = (*above, _real(root, place))
        inner = []
        for entry in root.entries(place):
            path = f"{place}/{entry.name}" if place else entry.name
            if not entry.folder or entry.junk:
                yield path, entry
            elif entry.link and _real(root, path) in above:
                yield path, entry._replace(folder=False, fault="a link to a folder above it")
            else:
                inner.append((path, above))
        waiting += reversed(inner)


def too_large(entry: Entry) -> str:
    """Why a file is too large to be an image; empty = it is not."""
    if entry.size <= LARGEST:
        return ""
    return f"{entry.size / 2**20:.0f} MiB, larger than any image"


def some(paths: Iterable[str], most: int = 5) -> str:
    """Paths for a message: the first few, and how many there are in all."""
    paths = list(paths)
    words = ", ".join(shown(path) for path in paths[:most])
    return words if len(paths) <= most else f"{words}, ... ({len(paths)} in all)"


def _real(root: Root, path: str) -> str:
    return os.path.realpath(root.at(path)) if root.local else root.at(path)


def _plain(path: str) -> bool:
    return not path.rpartition("/")[2].startswith(".")
