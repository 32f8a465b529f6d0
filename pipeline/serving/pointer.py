"""Which generation answers: `serving.json`, the one mutable object of a run, and its history.

Generations only grow; going back is a new generation that names an old manifest. There is one
writer at a time, the publisher. Each generation is first noted in `serving/000003.json`, then
pointed at; what was noted beyond the pointer was never published.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import IntegrityError
from pipeline.store import RunFolder

POINTER = "serving.json"
HISTORY = "serving"
_FILE = re.compile(r"(\d{6,})\.json")


class Refused(RuntimeError):
    """A generation that must not answer; the message is one line with the reason."""


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
        return Pointer(int(stored["generation"]), int(stored["manifest"]), str(stored["sha256"]))
    except FileNotFoundError:
        return NOTHING
    except (ValueError, KeyError, TypeError):
        shown = run.folder.shown(POINTER)
        raise IntegrityError(f"{shown} is not a pointer: publish a manifest again") from None


def next_pointer(run: RunFolder, manifest: int) -> Pointer:
    """The generation that would follow, answering from `manifest`.

    Raises:
        FileNotFoundError: no such manifest.
        IntegrityError: its file was altered.
    """
    return Pointer(read_pointer(run).generation + 1, manifest, run.models.read(manifest).sha256)


def write_pointer(run: RunFolder, pointer: Pointer, reason: str) -> None:
    """Note a generation and point at it; for the publisher alone."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    note = {**asdict(pointer), "reason": reason, "time": now}
    run.folder.child(HISTORY).write_json(f"{pointer.generation:06d}.json", note)
    run.folder.write_json(POINTER, asdict(pointer))


def history(run: RunFolder, latest: int = 50) -> list[dict[str, Any]]:
    """The latest generations, `{"generation", "manifest", "sha256", "reason", "time"}`."""
    folder, last = run.folder.child(HISTORY), read_pointer(run).generation
    numbers = sorted(int(m[1]) for m in map(_FILE.fullmatch, folder.list()) if m)
    numbers = [number for number in numbers if number <= last][-latest:]
    return [folder.read_json(f"{number:06d}.json") for number in numbers]
