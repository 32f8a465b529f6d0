"""The journal: numbered events, one immutable file each, the truth about what a run has done."""

from __future__ import annotations

import copy
import logging
import re
import threading
from datetime import UTC, datetime
from types import NoneType
from typing import Any

from archipelago.pipeline.redact import discreet
from archipelago.pipeline.store import documents
from archipelago.pipeline.store.folder import Folder
from archipelago.pipeline.store.lock import Check, unguarded

log = logging.getLogger(__name__)

_EVENT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FILE = re.compile(rf"(\d{{6,}})-({_EVENT.pattern})\.json")
# What readers of the journal count on, wherever an event has it.
_KINDS: dict[str, tuple[type, ...]] = {
    "event": (str,),
    "time": (str,),
    "stage": (int,),
    "task": (str,),
    "tasks": (list,),
    "sha256": (str, NoneType),
    "digests": (dict,),
    "counts": (dict,),
}
_OURS = frozenset({"number", "event", "time"})


class Journal:
    """Events of one run in `folder`, `000042-stage-done.json` and so on, from 000001 without gaps.

    `guard` is called before each append and raises when this process may no longer write.
    """

    def __init__(self, folder: Folder, guard: Check = unguarded):
        self._folder = folder
        self._guard = guard
        self._seen: dict[str, dict[str, Any] | None] = {}
        self._mutex = threading.Lock()

    def append(self, event: str, **payload: Any) -> int:
        """Record `event` with its JSON payload and the time (UTC); returns its number.

        Secrets in texts and under names that say so are hidden.

        Raises: ValueError for an event name or payload key that the journal cannot hold;
        LockedError when the run's lock was lost.
        """
        if not _EVENT.fullmatch(event):
            raise ValueError(f"journal event {event!r}: use lower-case words joined by hyphens")
        if taken := sorted(_OURS & payload.keys()):
            raise ValueError(f"journal event {event!r}: the journal itself sets {', '.join(taken)}")
        record = documents.plain(discreet(payload))
        with self._mutex, self._folder.exclusive():
            self._guard()
            number = max((number for number, _ in self._names()), default=0) + 1
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            record |= {"number": number, "event": event, "time": time}
            self._folder.write(f"{number:06d}-{event}.json", documents.dumps(record))
        return number

    def events(self) -> list[dict[str, Any]]:
        """Events by number, `{"number", "event", **payload, "time"}`; torn files are skipped."""
        records = (self._read(number, name) for number, name in sorted(self._names()))
        return [copy.deepcopy(record) for record in records if record is not None]

    def last(self, event: str, **match: Any) -> dict[str, Any] | None:
        """The latest `event` whose payload has every value in `match`, or None."""
        wanted = documents.plain(match)
        for record in reversed(self.events()):
            same = all(key in record and record[key] == wanted[key] for key in wanted)
            if record["event"] == event and same:
                return record
        return None

    def _names(self) -> list[tuple[int, str]]:
        matches = ((_FILE.fullmatch(name), name) for name in self._folder.list())
        return [(int(match[1]), name) for match, name in matches if match]

    def _read(self, number: int, name: str) -> dict[str, Any] | None:
        if name not in self._seen:
            try:
                record = self._folder.read_json(name)
            except ValueError:
                record = None
            if not _sound(record, number, name):
                log.warning("%s is not a whole event and is left out", self._folder.shown(name))
                record = None
            self._seen[name] = record
        return self._seen[name]


def _sound(record: Any, number: int, name: str) -> bool:
    """Whether a file holds the event that its name says, in the kinds that readers count on."""
    if not isinstance(record, dict) or record.get("number") != number:
        return False
    named = record.get("event") == name.partition("-")[2].removesuffix(".json")
    known = all(type(record[key]) in kinds for key, kinds in _KINDS.items() if key in record)
    whole = all(isinstance(task, str) for task in record.get("tasks", ()))
    return named and known and whole and "time" in record
