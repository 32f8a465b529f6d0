"""What was learned, ready to answer: an immutable value made from a set of records.

Everything in it is a pure function of the records, so learning more, forgetting, or another order
of learning give the state that these records always give.

Shapes: B images, T domains, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.identifiers import (
    Identification,
    Identifier,
    ScoreCache,
    build_identifier,
)
from archipelago.pipeline.methods import Function, Method, View, build_method
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.records import ClassList, GroupRecord, TaskRecord
from archipelago.pipeline.settings import Settings, UnseenSettings

LAMBDAS = np.linspace(0.0, 1.0, 21)
Speakers = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class State:
    """One set of records as it answers.

    Attributes:
        groups: records of the finished stages.
        records: records of the tasks with classes, by name, in the order of learning.
        method: knows them; with a backbone also their functions.
        identifier: knows them; None where the method does not identify.
        weight: share of the groups in the answer to an unseen image, where the method fuses.
        derived: what was worked out from it and is asked for again and again.
    """

    groups: tuple[GroupRecord, ...]
    records: Mapping[str, TaskRecord]
    method: Method
    identifier: Identifier | None
    weight: float
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def learned(self) -> list[str]:
        """Learned tasks with classes, in the order of learning."""
        return list(self.records)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Hash of the weights that the stage of each task left."""
        return {
            task.name: group.weights
            for group in self.groups
            if group.weights is not None
            for task in group.tasks
        }

    def function(self, task: str | None) -> Function | None:
        """What answers for a task; None = frozen CLIP."""
        return self.method.function(task, self.learned)

    def speakers(self, found: Identification | None, row: int) -> Speakers:
        """Groups that may speak for an unseen image beside frozen CLIP, with shares of 1."""
        if found is None or not found.options:
            return ()
        log_shares = found.log_shares[row]
        order = np.argsort(-log_shares, kind="stable")[: self.method.settings.method.unseen.groups]
        shares = np.exp(log_shares[order])
        if not shares.sum():
            return ()
        shares /= shares.sum()
        return tuple((found.options[o], float(s)) for o, s in zip(order, shares, strict=True) if s)

    def fused(
        self,
        view: View,
        found: Identification | None,
        listed: ClassList,
        frozen_BC: np.ndarray,
        weight: float | None = None,
    ) -> tuple[np.ndarray, list[Speakers]]:
        """Frozen CLIP's answer with that of the likeliest groups mixed in (method 2.8).

        `p = (1 - lam) p_CLIP + lam sum_s p(s|x) p_s`; without speakers, frozen CLIP's to the bit.

        Args:
            view: of the images, in which the speakers' features are prepared.
            found: what the identifier says of them.
            listed: C candidates.
            frozen_BC: frozen CLIP's log-probabilities.
            weight: lambda; default that of the state.

        Returns:
            (B, C) log-probabilities, and per image who spoke, weights without lambda.
        """
        lam = self.weight if weight is None else weight
        if not lam:
            return frozen_BC, [()] * len(view)
        spoke = [self.speakers(found, row) for row in range(len(view))]
        mixed, answer = np.exp(frozen_BC), frozen_BC.copy()
        groups = np.zeros_like(mixed)
        heard = np.zeros(len(view), dtype=bool)
        for task in sorted({name for said in spoke for name, _ in said}):
            share = np.array([dict(said).get(task, 0.0) for said in spoke])
            rows = np.flatnonzero(share)
            function = self.function(task)
            assert function is not None
            scores = self.method.scores(view.take(rows), function, listed)
            if scores is not None:
                groups[rows] += share[rows, None] * np.exp(scores)
                heard[rows] = True
        if heard.any():
            with np.errstate(divide="ignore"):
                fused = np.log((1.0 - lam) * mixed + lam * groups)
            answer[heard] = fused[heard]
        return answer, spoke


def build_state(
    groups: Sequence[GroupRecord],
    settings: Settings,
    basis: Basis,
    *,
    scale: float = 1.0,
    backbone: Backbone | None = None,
    score_cache: ScoreCache | None = None,
    soft: bool | None = None,
) -> State:
    """The state of a set of records.

    Args:
        groups: records of finished stages.
        settings: of the run.
        basis: of compact features.
        scale: `exp(logit_scale)`, where no backbone is given.
        backbone: frozen CLIP, where functions with weights are to run in this process.
        score_cache: asks a multimodal model, for multimodal identifiers.
        soft: of the identifier; None = where the method answers by every task.

    Raises:
        ValueError: a group does not fit the backbone, or lacks what identification needs.
    """
    ordered = tuple(sorted(groups, key=lambda group: group.stage))
    records = {t.name: t for group in ordered for t in group.tasks if t.kind is None}
    method = build_method(settings, basis, backbone, scale)
    if backbone is not None:
        for group in (group for group in ordered if group.tensors):
            method.install(group.name, group.tensors)
    method.hold(ordered)
    method.know(records)
    identifier = None
    if method.identifies():
        soft = method.policy == "posterior" if soft is None else soft
        identifier = build_identifier(settings.identifier, basis, score_cache, soft)
        identifier.know(records)
    weight = fusion_weight(settings.method.unseen, records.values()) if method.fuses else 0.0
    return State(ordered, records, method, identifier, weight)


def fusion_weight(unseen: UnseenSettings, records: Iterable[TaskRecord]) -> float:
    """Lambda: the share of the groups in the answer to an unseen image.

    With `lambda_max: auto` the value that was best, on average over the tasks, when their held-out
    folds were still unseen: what was measured is what is applied. A fixed `lambda_max` is reached
    as stages are learned, `lambda_max t / (t + K)` (method 2.8).
    """
    known = list(records)
    if not known:
        return 0.0
    if unseen.lambda_max != "auto":
        return float(unseen.lambda_max) * len(known) / (len(known) + unseen.lambda_steps)
    curves = [np.asarray(r.lambda_accuracy) for r in known if r.lambda_accuracy]
    if not curves:
        return 0.0
    gain = np.mean([curve - curve[0] for curve in curves], axis=0)
    return float(LAMBDAS[int(np.argmax(gain - 1e-9 * np.arange(len(gain))))])
