"""Some rows of a decoded table under a class list of their own, or which of its rows belong
together, named by the hash of its content.

A selection is a small file in the table's folder; `ImageTable.open` takes its path for that of a
table. So tasks that share a domain share its decoded images, and go with them.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from archipelago.pipeline.errors import IntegrityError, UserError

SUFFIX = ".part.json"


def file_name(digest: str) -> str:
    """Where the selection with this digest lies, in the folder of its table."""
    return f"{digest[:32]}{SUFFIX}"


@dataclass(frozen=True)
class Selection:
    """Rows and classes of a split.

    Attributes:
        base: content digest of the split that they are taken from.
        rows: rows of the source split, ascending.
        classes: labels of the split that become 0, 1, ..., ascending; all rows have one of them.
        groups: of each row, those of one number belong together; None where nothing says so.
    """

    base: str
    rows: tuple[int, ...]
    classes: tuple[int, ...]
    groups: tuple[int, ...] | None = None

    @cached_property
    def content(self) -> bytes:
        """The file."""
        facts = {"base": self.base, "rows": self.rows, "classes": self.classes}
        return json.dumps(facts | ({} if self.groups is None else {"groups": self.groups})).encode()

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, which stands for that of the selected images."""
        return hashlib.sha256(self.content).hexdigest()

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """(n,) where the selected rows are among those of the table (N,)."""
        return np.flatnonzero(np.isin(rows, self.rows))

    def groups_of(self, rows: np.ndarray) -> np.ndarray | None:
        """(n,) int64 groups of selected rows (n,); None where there are none."""
        if self.groups is None:
            return None
        return np.array(self.groups, np.int64)[np.searchsorted(self.rows, rows)]

    def places(self, labels: np.ndarray) -> np.ndarray:
        """(n,) labels of the split to those of the selection."""
        return np.searchsorted(np.array(self.classes, np.int64), labels)

    def store(self, folder: Path) -> Path:
        """Write it beside the shards of its table, whole or not at all; returns its path."""
        path = folder / file_name(self.digest)
        if not path.exists():
            temporary = folder / f".{uuid.uuid4().hex}{SUFFIX}"
            with temporary.open("wb") as file:
                file.write(self.content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        return path

    @classmethod
    def read(cls, path: Path) -> Selection:
        """Read what `store` wrote.

        Raises:
            UserError: it is not there.
            IntegrityError: it is not what its name says.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: no complete image cache; run again to prepare it") from None
        if file_name(hashlib.sha256(content).hexdigest()) != path.name:
            raise IntegrityError(f"{path}: damaged selection of images")
        facts = json.loads(content)
        groups = facts.get("groups")
        return cls(
            facts["base"],
            tuple(facts["rows"]),
            tuple(facts["classes"]),
            None if groups is None else tuple(groups),
        )
