"""All files below a folder, each with its fate: used, left out with a reason, or known junk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from archipelago.pipeline.streams.files import Root, shown

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
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, ())]
    while waiting:
        place, above = waiting.pop()
        above = (*above, _real(root, place))
        inner = []
        for entry in root.entries(place):
            path = f"{place}/{entry.name}" if place else entry.name
            if entry.junk:
                found.junk.append(f"{path}/" if entry.folder else path)
            elif entry.folder and entry.link and _real(root, path) in above:
                found.faults.append((path, "a link to a folder above it"))
            elif entry.folder:
                inner.append((path, above))
            elif entry.fault:
                found.faults.append((path, entry.fault))
            elif entry.size > LARGEST:
                size = f"{entry.size / 2**20:.0f} MiB"
                found.faults.append((path, f"{size}, larger than any image"))
            else:
                found.files.append(path)
        waiting += reversed(inner)
    return found


def some(paths: Iterable[str], most: int = 5) -> str:
    """Paths for a message: the first few, and how many there are in all."""
    paths = list(paths)
    words = ", ".join(shown(path) for path in paths[:most])
    return words if len(paths) <= most else f"{words}, ... ({len(paths)} in all)"


def _real(root: Root, path: str) -> str:
    return os.path.realpath(root.at(path)) if root.local else root.at(path)


def _plain(path: str) -> bool:
    return not path.rpartition("/")[2].startswith(".")
