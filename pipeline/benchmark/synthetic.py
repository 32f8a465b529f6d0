"""Synthetic groups for measurements: a run's groups again and again, under other names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.store import GroupRef, RunFolder

FIRST = 1000  # their stages begin here, the run's own below


def grow(run: RunFolder, sizes: Sequence[int]) -> dict[int, int]:
    """Store copies of the run's groups and publish manifests of so many; size -> version.

    Copied are groups of one domain that borrow from nobody, so that every copy costs the same; it
    is recognised by its statistics alone. The run is changed: use a copy of it.

    Raises:
        UserError: the run has no such group.
    """
    document = run.read()
    document["config"]["identifier"]["name"] = "prototype"
    run.folder.write_json("run.json", document)
    real = [group for group in learned(run) if not group.neighbours and len(group.tasks) == 1]
    if not real:
        raise UserError(f"run_dir={run.folder.shown()}: every group borrows or has several domains")
    refs: list[GroupRef] = []
    found = {}
    with run.lock():
        for size in sizes:
            while len(refs) < size:
                copied = _copy(real[len(refs) % len(real)], len(refs)).write(run.groups)
                assert copied.ref is not None
                refs.append(copied.ref)
            found[size] = run.models.publish(refs)
    return found


def learned(run: RunFolder) -> list[GroupRecord]:
    """Records of the run's own groups, as its newest model without synthetic ones has them."""
    for version in reversed(run.models.versions()):
        refs = run.models.read(version).groups
        if all(ref.stage < FIRST for ref in refs):
            return [GroupRecord.read(run, ref) for ref in refs]
    return []


def _copy(group: GroupRecord, number: int) -> GroupRecord:
    name = f"synthetic-{number:03d}"
    (task,) = group.tasks
    return replace(group, stage=FIRST + number, name=name, tasks=(replace(task, name=name),))
