"""Records of stored stages in memory, verified: read once, shared by all states that name them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.store import GroupRef, RunFolder


class Library:
    """Reads groups of one run."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._records: dict[tuple[str, str], GroupRecord] = {}

    def get(self, ref: GroupRef) -> GroupRecord:
        """The record of a group, read at its first use; every file is checked against its hash.

        Raises:
            IntegrityError: a file is missing, altered, or not what it should be.
        """
        key = (ref.folder, ref.sha256)
        if key not in self._records:
            record = GroupRecord.read(self.run, ref)
            check_finite(record)
            self._records[key] = record
        return self._records[key]

    def all(self, refs: Iterable[GroupRef]) -> list[GroupRecord]:
        """The records of several groups."""
        return [self.get(ref) for ref in refs]

    def keep(self, refs: Iterable[GroupRef]) -> None:
        """Let go of all other groups."""
        wanted = {(ref.folder, ref.sha256) for ref in refs}
        self._records = {key: r for key, r in self._records.items() if key in wanted}


def check_finite(record: GroupRecord) -> None:
    """Weights and class features are numbers.

    Raises:
        IntegrityError: one is not.
    """
    found = dict(record.tensors)
    for task in record.tasks:
        for name, array in (("text", task.text_CF), ("own", task.own_CF)):
            if array is not None:
                found[f"{task.name}/{name}"] = torch.from_numpy(array)
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise IntegrityError(f"group '{record.name}': {name} is not finite")
