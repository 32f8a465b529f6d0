"""Which row a task was decoding when its worker died: a row that kills twice is left out.

Native decoders can crash, and an image can exhaust the memory; a lost task runs again, so without
this note one such row would stop the run for good.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from pathlib import Path

DEATHS = 2  # workers lost on a row before it is blamed rather than bad luck
NOTHING = -1
ROW = struct.Struct("<q")


class InFlight:
    """A note beside the shard that outlives the process: memory-mapped, a write costs nothing."""

    def __init__(self, target: Path) -> None:
        self._note = target.with_name(f".{target.name}.row")
        self._died = target.with_name(f".{target.name}.died")
        last = self._note.read_bytes() if self._note.exists() else b""
        if len(last) == ROW.size and ROW.unpack(last)[0] != NOTHING:
            with self._died.open("a") as file:
                file.write(f"{ROW.unpack(last)[0]}\n")
        lines = self._died.read_text().split() if self._died.exists() else []
        self.blamed = {int(row) for row, times in Counter(lines).items() if times >= DEATHS}
        self._note.write_bytes(ROW.pack(NOTHING))
        with self._note.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ROW.size)

    def enter(self, row: int) -> None:
        """Row `row` is being decoded from here on (NOTHING: none is)."""
        ROW.pack_into(self._map, 0, row)

    def clear(self) -> None:
        """The attempt ended without losing the worker."""
        self._map.close()
        self._note.unlink(missing_ok=True)
        self._died.unlink(missing_ok=True)
