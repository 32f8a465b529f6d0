"""The canary: a generation shows on stored images that it may answer, before it does.

New groups are checked on all images stored with them: finite scores, those they had when they were
learned, and enough of them right. Domains that answer already must give the same scores as now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from archipelago.pipeline.errors import Refused
from archipelago.pipeline.learned.runtime import Runtime
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.settings import CanarySettings

if TYPE_CHECKING:
    from archipelago.pipeline.serving.model import Generation

BATCH = 32


def check(
    runtime: Runtime, new: Generation, current: Generation | None, settings: CanarySettings
) -> dict[str, float]:
    """Largest change of a log-probability per domain.

    Raises:
        Refused: the reason, naming the domain.
    """
    changes: dict[str, float] = {}
    known = {} if current is None else current.tasks
    for name, task in new.tasks.items():
        assert task.probe is not None
        old = known.get(name)
        same = old is not None and current is not None and old is task
        count = len(task.probe.images)
        if same:
            count = min(settings.images, count)
        scores = probe_scores(runtime, new.state, new.texts, name, count)
        if not np.isfinite(scores[:, task_known(scores)]).all() or np.isnan(scores).any():
            raise Refused(f"'{name}': its scores are not finite")
        reference = task.probe.scores[:count]
        if same and current is not None:
            reference = probe_scores(runtime, current.state, current.texts, name, count)
        if reference.shape != scores.shape:
            raise Refused(f"'{name}': {scores.shape[1]} classes, {reference.shape[1]} when learned")
        changes[name] = largest_change(scores, reference)
        if changes[name] > settings.tolerance:
            since = "from those that answer now" if same else "from when it was learned"
            raise Refused(
                f"'{name}': scores differ by {changes[name]:.2g} {since}, more than"
                f" {settings.tolerance:g}: another backbone, or altered weights"
            )
        right = float((scores.argmax(axis=1) == task.probe.labels[:count]).mean())
        if not same and right < settings.floor:
            raise Refused(
                f"'{name}': {right:.0%} of its probe images right, {settings.floor:.0%} needed"
            )
    return changes


def probe_scores(runtime: Runtime, state: State, texts: Texts, name: str, count: int) -> np.ndarray:
    """Log-probabilities (count, C) of a domain's first probe images under its own function."""
    record, function = state.records[name], state.function(name)
    assert record.probe is not None and function is not None
    parts = []
    for start in range(0, count, BATCH):
        images = record.probe.images[start : min(count, start + BATCH)]
        view = runtime.view(state, images, texts)
        scores = state.method.scores(view, function, record.listed)
        assert scores is not None
        parts.append(scores)
    return np.concatenate(parts)


def task_known(scores: np.ndarray) -> np.ndarray:
    """(C,) classes that have any score: one without a training image has none."""
    return np.logical_not(np.isneginf(scores).all(axis=0))


def largest_change(scores: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of two sets of log-probabilities; classes without scores do not count.

    Beyond -1 differences are relative: what is hopeless may have thousands, rounded accordingly.
    """
    both = np.isfinite(scores) & np.isfinite(reference)
    differs = np.isfinite(scores) != np.isfinite(reference)
    if differs.any():
        return float("inf")
    size = np.maximum(1.0, np.maximum(np.abs(scores), np.abs(reference)))
    with np.errstate(invalid="ignore"):
        change = np.abs(scores - reference) / size
    return float(change[both].max(initial=0.0))
