"""Groups that lose a neighbour: stored once more without its share, and measured on their probes.

Shapes: n probe images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from archipelago.pipeline.errors import Refused
from archipelago.pipeline.learned.runtime import Runtime
from archipelago.pipeline.learned.state import State, build_state
from archipelago.pipeline.methods import build_method
from archipelago.pipeline.records import GroupRecord, Probe, TaskRecord
from archipelago.pipeline.serving.canary import largest_change, probe_scores
from archipelago.pipeline.store import GroupRef, RunFolder

Mixed = dict[str, tuple[GroupRef, dict[str, Any]]]


def remix(run: RunFolder, task: str, refs: Sequence[GroupRef], losing: Sequence[str]) -> Mixed:
    """Store each dependent of a domain once more, without that neighbour.

    Args:
        run: locked by the caller.
        task: the domain that is forgotten.
        refs: the groups of the model, that of the domain among them.
        losing: names of the groups that borrow from it; one domain each.

    Returns:
        Per dependent its new group, and accuracy on its probes `before`, `after` and the largest
        `change` of a log-probability.

    Raises:
        Refused: a dependent's scores are not finite without it.
    """
    runtime = Runtime(run, "cpu")
    groups = sorted(runtime.library.all(refs), key=lambda group: group.stage)
    before = _state(runtime, groups)
    method = build_method(runtime.settings, runtime.basis, runtime.backbone)
    kept = []
    for group in groups:
        if group.name == task:
            continue
        tensors = method.without(group.tensors, task)
        if group.name in losing:
            left = tuple(n for n in group.neighbours if n["task"] != task)
            was = None if group.ref is None else group.ref.sha256
            group = replace(group, tensors=tensors, weights=None, neighbours=left, remixed=was)
            group = group.with_tasks([replace(t, own_CF=None) for t in group.tasks])
        kept.append(group)
    kept = _with_own_classes(runtime, kept, losing)
    after = _state(runtime, kept)
    found: Mixed = {}
    for group in kept:
        if group.name not in losing:
            continue
        (record,) = group.tasks
        first, scores = (_scores(runtime, state, record) for state in (before, after))
        if not np.isfinite(scores).all():
            raise Refused(f"'{group.name}' without '{task}': its scores are not finite")
        assert record.probe is not None
        probe = Probe(record.probe.images, record.probe.labels, scores.astype(np.float32))
        stored = group.with_tasks([replace(record, probe=probe)]).write(run.groups, beside=True)
        assert stored.ref is not None
        run.journal.append(
            "remixed", stage=group.stage, task=group.name, sha256=stored.ref.sha256, without=task
        )
        found[group.name] = (
            stored.ref,
            {
                "before": _accuracy(first, record),
                "after": _accuracy(scores, record),
                "change": largest_change(scores, first),
            },
        )
    return found


def _state(runtime: Runtime, groups: Sequence[GroupRecord]) -> State:
    with runtime.exact():
        return build_state(groups, runtime.settings, runtime.basis, backbone=runtime.backbone)


def _with_own_classes(
    runtime: Runtime, groups: Sequence[GroupRecord], losing: Sequence[str]
) -> list[GroupRecord]:
    """The same groups with class features under the functions as they are now."""
    state, found = _state(runtime, groups), []
    texts = runtime.texts(state)
    for group in groups:
        if group.name in losing:
            (record,) = group.tasks
            own = texts.get(record.listed, state.function(record.name))
            group = group.with_tasks([replace(record, own_CF=own)])
        found.append(group)
    return found


def _scores(runtime: Runtime, state: State, record: TaskRecord) -> np.ndarray:
    assert record.probe is not None
    count = len(record.probe.images)
    return probe_scores(runtime, state, runtime.texts(state), record.name, count)


def _accuracy(scores: np.ndarray, record: TaskRecord) -> float:
    assert record.probe is not None
    return 100.0 * float((scores.argmax(axis=1) == record.probe.labels).mean())
