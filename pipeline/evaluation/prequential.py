"""Before a stage: how much of the learned groups an image of an unseen domain should get.

The held-out fold of a task about to be learned is genuinely unseen by the model as it is: no test
image and no earlier image is needed to calibrate lambda (method 2.8).

Shapes: n held-out images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archipelago.pipeline.evaluation.views import CachedFeatures, Encoder, SplitView
from archipelago.pipeline.identifiers import Evidence
from archipelago.pipeline.learned.state import LAMBDAS, State
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import class_list
from archipelago.pipeline.streams import ImageTable, PreparedDomain


def prequential(
    state: State,
    encoder: Encoder,
    texts: Texts,
    versions: Mapping[str, str],
    domain: PreparedDomain,
    held: np.ndarray,
) -> list[float] | None:
    """Accuracy of the model as it is on a new task's held-out fold, for every lambda.

    Args:
        state: what was learned so far.
        encoder: computes features of the fold.
        texts: class features by name.
        versions: hash of each task's weights.
        domain: the task about to be learned.
        held: rows of its held-out fold.

    Returns:
        Percent per value of `LAMBDAS`; None where nothing was learned or the method does not fuse.
    """
    if not state.records or not state.method.fuses or not len(held) or state.identifier is None:
        return None
    table = domain.tables["train"]
    labels = ImageTable.open(table).labels[held]
    compact, frozen = encoder.look(table, held)
    view = SplitView(compact, frozen, CachedFeatures(encoder, table, held), texts, versions)
    found = state.identifier.alone.identify(Evidence(compact, domain.name))
    listed = class_list(domain.classes, domain.templates)
    alone = log_softmax(state.method.clip_scores(view, view.text(listed, None)))
    groups, _ = state.fused(view, found, listed, alone, weight=1.0)
    p, q = np.exp(alone), np.exp(groups)
    return [
        100.0 * float((((1.0 - lam) * p + lam * q).argmax(axis=1) == labels).mean())
        for lam in LAMBDAS
    ]
