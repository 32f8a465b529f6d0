"""Inter-group routing: which earlier groups a new one may borrow from (method 2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.identifiers.basis import task_distance
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.methods import Neighbour
from archipelago.pipeline.records import GroupRecord, TaskRecord


def needed(
    records: Sequence[TaskRecord], state: State, basis: Basis, learned: Iterable[GroupRecord]
) -> tuple[list[GroupRecord], tuple[Neighbour, ...]]:
    """The stored groups that training needs, by stage, and the neighbours it borrows from.

    Args:
        records: of the tasks to be trained together.
        state: what is learned, and the method.
        basis: of compact features.
        learned: its groups.
    """
    method = state.method
    neighbours: tuple[Neighbour, ...] = ()
    groups = sorted(learned, key=lambda group: group.stage)
    if method.borrows:
        if len(records) == 1:
            neighbours = neighbours_of(records[0], state, basis)
        groups = with_lenders({neighbour.task for neighbour in neighbours}, groups)
    else:
        groups = groups[-1:] if method.continues else []
    return groups, neighbours


def neighbours_of(record: TaskRecord, state: State, basis: Basis) -> tuple[Neighbour, ...]:
    """The at most m nearest learned tasks within reach of a new one."""
    if record.sums is None:
        return ()
    rule = state.method.settings.method.neighbours
    found = [
        Neighbour(task_distance(record.sums, other.sums, basis), task)
        for task, other in state.records.items()
        if other.sums is not None
    ]
    near = sorted(n for n in found if n.distance <= rule.max_distance)
    return tuple(near[: rule.count])


def with_lenders(wanted: set[str], learned: Sequence[GroupRecord]) -> list[GroupRecord]:
    """The groups of some tasks and those that they borrow from, by stage.

    Args:
        wanted: names of tasks.
        learned: all groups, by stage.
    """
    found = []
    for group in reversed(learned):  # a group borrows from earlier ones only
        if wanted.intersection(task.name for task in group.tasks):
            found.append(group)
            wanted = wanted | {neighbour["task"] for neighbour in group.neighbours}
    return found[::-1]
