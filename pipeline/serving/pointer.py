"""Which generation answers: `serving.json`, the one mutable object of a run, and its history.

Generations only grow; going back is a new generation that names an old manifest. There is one
writer at a time, the publisher. Each generation is first noted in `serving/000003.json`, then
pointed at; what was noted beyond the pointer was never published.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import Folder, RunFolder

log = logging.getLogger(__name__)

POINTER = "serving.json"
HISTORY = "serving"
_FILE = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True)
class Pointer:
    """A generation and the manifest it answers from; generation 0 is frozen CLIP alone."""

    generation: int = 0
    manifest: int = 0
    sha256: str = ""


NOTHING = Pointer()


def read_pointer(run: RunFolder) -> Pointer:
    """The current generation, `NOTHING` before the first was published.

    Raises:
        IntegrityError: the file is no pointer.
    """
    try:
        stored = run.folder.read_json(POINTER)
        found = Pointer(stored["generation"], stored["manifest"], stored["sha256"])
        if not _is_sound(found):
            raise TypeError("a pointer")
        return found
    except FileNotFoundError:
        return NOTHING
    except (ValueError, KeyError, TypeError):
        shown = run.folder.shown(POINTER)
        raise IntegrityError(f"{shown} is not a pointer: publish a manifest again") from None


def newest_pointer(run: RunFolder) -> Pointer:
    """As `read_pointer`; where that file is damaged, the last generation that was noted.

    So what is published next has a higher number than anything that ever answered.
    """
    try:
        return read_pointer(run)
    except IntegrityError as error:
        log.warning("%s", error)
        return Pointer(max(_noted(run), default=0))


def next_pointer(run: RunFolder, manifest: int) -> Pointer:
    """The generation that would follow, answering from `manifest`.

    Raises:
        FileNotFoundError: no such manifest.
        IntegrityError: its file was altered.
    """
    return Pointer(newest_pointer(run).generation + 1, manifest, run.models.read(manifest).sha256)


def write_pointer(run: RunFolder, pointer: Pointer, reason: str) -> None:
    """Note a generation and point at it; for the publisher alone."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    note = {**asdict(pointer), "reason": reason, "time": now}
    run.folder.child(HISTORY).write_json(f"{pointer.generation:06d}.json", note)
    run.folder.write_json(POINTER, asdict(pointer))


def history(run: RunFolder, latest: int = 50) -> list[dict[str, Any]]:
    """The latest generations, `{"generation", "manifest", "sha256", "reason", "time"}`.

    A note that is damaged is left out.
    """
    folder, last = run.folder.child(HISTORY), newest_pointer(run).generation
    numbers = [number for number in _noted(run) if number <= last][-latest:]
    notes = (_note(folder, number) for number in numbers)
    return [note for note in notes if note is not None]


def _note(folder: Folder, number: int) -> dict[str, Any] | None:
    name = f"{number:06d}.json"
    try:
        note = folder.read_json(name)
        pointer = Pointer(note["generation"], note["manifest"], note["sha256"])
        texts = note["reason"], note["time"]
        if not _is_sound(pointer) or not all(isinstance(text, str) for text in texts):
            raise TypeError("a note")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        log.warning("%s is damaged and is left out", folder.shown(name))
        return None
    return dict(note)


def _noted(run: RunFolder) -> list[int]:
    """Numbers of the generations that were noted, ascending."""
    names = run.folder.child(HISTORY).list()
    return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)


def _is_sound(pointer: Pointer) -> bool:
    numbers = pointer.generation, pointer.manifest
    return isinstance(pointer.sha256, str) and all(
        type(number) is int and 0 <= number < 2**53 for number in numbers
    )
