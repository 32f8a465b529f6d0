"""The canary: a generation shows on stored images that it may answer, before it does.

New groups are checked on all images stored with them: finite logits, those they had when they were
learned, and enough of them right. Domains that answer already must give the same logits as now.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.serving.library import LearnedTask
from pipeline.serving.pointer import Refused
from pipeline.serving.snapshot import Snapshot
from pipeline.settings import CanarySettings

BATCH = 32


def check(new: Snapshot, current: Snapshot | None, settings: CanarySettings) -> dict[str, float]:
    """Largest change of a logit per domain.

    Raises:
        Refused: the reason, naming the domain.
    """
    changes: dict[str, float] = {}
    known = {} if current is None else current.tasks
    for name, task in new.tasks.items():
        old = known.get(name)
        same = old is not None and old.ref == task.ref
        count = min(settings.images, len(task.probe.images)) if same else len(task.probe.images)
        logits = probe_logits(new, task, count)
        if not np.isfinite(logits).all():
            raise Refused(f"'{name}': its logits are not finite")
        reference = task.probe.logits[:count]
        if same and current is not None:
            reference = probe_logits(current, task, count)
        if reference.shape != logits.shape:
            raise Refused(f"'{name}': {logits.shape[1]} classes, {reference.shape[1]} when learned")
        changes[name] = float(np.abs(logits - reference).max())
        if changes[name] > settings.tolerance:
            since = "from those that answer now" if same else "from when it was learned"
            raise Refused(
                f"'{name}': logits differ by {changes[name]:.2g} {since}, more than"
                f" {settings.tolerance:g}: another backbone, or altered weights"
            )
        right = float((logits.argmax(axis=1) == task.probe.labels[:count]).mean())
        if not same and right < settings.floor:
            raise Refused(
                f"'{name}': {right:.0%} of its probe images right, {settings.floor:.0%} needed"
            )
    return changes


@torch.no_grad()
def probe_logits(snapshot: Snapshot, task: LearnedTask, count: int) -> np.ndarray:
    """Logits (count, C) of a domain's first probe images under its own function."""
    parts = []
    for images in _batches(task.probe.images[:count]):
        method = snapshot.method
        x_BLD = method.trunk(method.backbone.normalise(images))
        v_BF = method.image_features(x_BLD, [task.name] * len(images))
        parts.append((method.backbone.logit_scale * v_BF @ task.own_CF.T).cpu().numpy())
    return np.concatenate(parts)


def _batches(images: np.ndarray) -> Sequence[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
