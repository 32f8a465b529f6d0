"""Answers for a mixed batch in one pass: trunk once, identify, every image through its own groups.

A seen image costs the trunk, the frozen upper blocks (the identifier reads them) and its group; an
unseen one the same with at most two groups. An image's answer does not depend on its batch.

Shapes: B images, R of them to be identified, P (image, function) pairs, S side, L tokens, D width,
F embedding, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.identifiers import Evidence, Identification
from pipeline.identifiers.features import DepthRecorder
from pipeline.model.fusion import fuse, softmax
from pipeline.serving.asking import Answer, Ask
from pipeline.serving.consult import Doubt, doubts_of, speakers
from pipeline.serving.snapshot import Snapshot

TEMPLATES = ("a photo of a {}.",)  # of labels that belong to no learned domain


@dataclass
class _Plan:
    """Who answers for each image."""

    tasks: list[str | None]
    confidence: list[float]
    shares: list[tuple[tuple[str, float], ...]]  # of unseen images
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How signature features are read off a pass: fixed with the run's settings."""

    depths: tuple[int, ...]
    with_final: bool


TextFeatures = Callable[[Snapshot, str | None, tuple[str, ...]], Tensor]


@torch.no_grad()
def answer_batch(
    snapshot: Snapshot,
    reading: Reading,
    images_BSSC: np.ndarray,
    asks: Sequence[Ask],
    text: TextFeatures,
    doubts: list[Doubt] | None = None,
) -> tuple[list[Answer], dict[str, float]]:
    """Answer every image, and say how many milliseconds each part took.

    Args:
        snapshot: one generation.
        reading: what the signature reads.
        images_BSSC: uint8 images.
        asks: one an image; their tasks are among the snapshot's.
        text: class features of an open vocabulary.
        doubts: takes the images on whose domain a second opinion is worth having.
    """
    clock = time.perf_counter()
    method = snapshot.method
    free = np.array([row for row, ask in enumerate(asks) if not ask.names], dtype=np.int64)
    record = DepthRecorder(reading.depths)
    pixels = method.backbone.normalise(np.ascontiguousarray(images_BSSC))
    x_BLD = method.trunk(pixels, record if len(free) else None)
    frozen: dict[int, Tensor] = {}
    found = None
    if len(free):
        rows = torch.from_numpy(free)
        record.select(rows)
        x_RLD = x_BLD if len(free) == len(asks) else x_BLD[rows]
        final = None
        if reading.with_final:
            final = method.frozen_features(x_RLD, record)
            frozen = dict(zip(free.tolist(), final, strict=True))
        evidence = Evidence(record.features(final).cpu().numpy())
        found = snapshot.identifier.identify(evidence)
        if doubts is not None:
            doubts += doubts_of(snapshot.whole, found, free, _speaking(snapshot))
    identified = time.perf_counter()
    plan = _plan(snapshot, asks, free, found)
    pairs = _pairs(plan)
    features = {}
    if pairs:
        at = torch.tensor([row for row, _ in pairs])
        # Rows in place need no copy: the usual batch, in which every image was recognised.
        x_PLD = x_BLD if at.tolist() == list(range(len(asks))) else x_BLD[at]
        passed = method.image_features(x_PLD, [function for _, function in pairs])
        features = dict(zip(pairs, passed, strict=True))
    missing = [r for r, task in enumerate(plan.tasks) if task is None and r not in frozen]
    if missing:
        late = method.frozen_features(x_BLD[torch.tensor(missing)])
        frozen |= dict(zip(missing, late, strict=True))
    grouped = time.perf_counter()
    answers = [
        _seen(snapshot, row, ask, plan, features, text)
        if plan.tasks[row] is not None
        else _unseen(snapshot, row, ask, plan, features, frozen, text)
        for row, ask in enumerate(asks)
    ]
    done = time.perf_counter()
    spent = {"identify": identified - clock, "groups": grouped - identified, "text": done - grouped}
    return answers, {name: 1000.0 * seconds for name, seconds in spent.items()}


def _plan(
    snapshot: Snapshot, asks: Sequence[Ask], free: np.ndarray, found: Identification | None
) -> _Plan:
    plan = _Plan([a.task for a in asks], [1.0] * len(asks), [a.shares or () for a in asks])
    if found is None:
        return plan
    count = _speaking(snapshot)
    spoken = speakers(found, count) if count and found.options else None
    for index, row in enumerate(free.tolist()):
        option = int(found.chosen[index])
        plan.confidence[row] = float(found.probabilities[index, option])
        if option >= 0:
            plan.tasks[row] = found.options[option]
        elif spoken is not None:
            plan.shares[row] = spoken[index]
    return plan


def _speaking(snapshot: Snapshot) -> int:
    """How many groups speak for an unseen image beside frozen CLIP."""
    return snapshot.method.settings.method.unseen.groups if snapshot.weight > 0.0 else 0


def _pairs(plan: _Plan) -> list[tuple[int, str]]:
    pairs = []
    for row, task in enumerate(plan.tasks):
        names = [task] if task is not None else [name for name, _ in plan.shares[row]]
        pairs += [(row, name) for name in names]
    return pairs


def _seen(
    snapshot: Snapshot,
    row: int,
    ask: Ask,
    plan: _Plan,
    features: dict[tuple[int, str], Tensor],
    text: TextFeatures,
) -> Answer:
    name = plan.tasks[row]
    assert name is not None
    task = snapshot.tasks[name]
    labels = ask.labels or task.classes
    u_CF = task.own_CF if ask.labels is None else text(snapshot, name, ask.labels)
    p_C = _probabilities(snapshot, features[row, name], u_CF, task.temperature)
    groups = tuple(snapshot.method.contributions(name).items())
    return Answer(name, plan.confidence[row], False, 0.0, groups, _top(labels, p_C, ask.top_k))


def _unseen(
    snapshot: Snapshot,
    row: int,
    ask: Ask,
    plan: _Plan,
    features: dict[tuple[int, str], Tensor],
    frozen: dict[int, Tensor],
    text: TextFeatures,
) -> Answer:
    """`p = (1 - lam) p_CLIP + lam sum_s p(s|x) p_s` (method 2.8).

    Without labels the candidates are all learned classes, and a group speaks for its own ones.
    """
    labels: Sequence[str]
    if ask.labels is not None:
        labels = ask.labels
        p_C = _probabilities(snapshot, frozen[row], text(snapshot, None, ask.labels), 1.0)
    elif snapshot.tasks:
        labels = snapshot.labels
        p_U = _probabilities(snapshot, frozen[row], snapshot.candidates_UF, 1.0)
        p_C = np.bincount(snapshot.all_columns, weights=p_U, minlength=len(labels))
    else:
        return Answer(None, plan.confidence[row], True, 0.0, (), ())
    shares = plan.shares[row]
    weight = snapshot.weight if shares else 0.0
    if shares:
        parts = np.zeros((1, len(shares), len(labels)))
        for index, (name, _) in enumerate(shares):
            task, v_F = snapshot.tasks[name], features[row, name]
            if ask.labels is not None:
                u_CF = text(snapshot, name, ask.labels)
                parts[0, index] = _probabilities(snapshot, v_F, u_CF, task.temperature)
            else:
                own = _probabilities(snapshot, v_F, task.own_CF, task.temperature)
                parts[0, index, snapshot.columns[name]] = own
        p_C = fuse(p_C[None], parts, np.array([[share for _, share in shares]]), weight)[0]
    groups = tuple((name, weight * share) for name, share in shares)
    return Answer(None, plan.confidence[row], True, weight, groups, _top(labels, p_C, ask.top_k))


def _probabilities(snapshot: Snapshot, v_F: Tensor, u_CF: Tensor, temperature: float) -> np.ndarray:
    logits = snapshot.method.backbone.logit_scale * (u_CF @ v_F)
    return softmax(logits.cpu().numpy().astype(np.float64), temperature)


def _top(labels: Sequence[str], p_C: np.ndarray, count: int) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-p_C, kind="stable")[:count]
    return tuple((labels[index], float(p_C[index])) for index in best)
