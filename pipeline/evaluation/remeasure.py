"""A learned model on test images, maybe new ones: what it gets right, given the domain and not.

One pass of frozen CLIP serves both questions. Answers are those of `LearnedModel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.learned.asking import Answer
from archipelago.pipeline.learned.candidates import Candidate
from archipelago.pipeline.learned.model import LearnedModel
from archipelago.pipeline.learned.runtime import Wish
from archipelago.pipeline.streams import ImageTable, PreparedDomain

BATCH = 64


@dataclass(frozen=True)
class Remeasured:
    """One domain, percent of its test images; None where it is not asked.

    Attributes:
        task: the domain.
        learned: whether the model learned it.
        images: how many.
        given: right among its own classes, the domain given; of a domain that was not learned, the
            class names given.
        free: the name is right among all learned classes, as in the setting `xtail_merged`.
        recognised: sent to this domain.
        unseen: taken for an image of no learned domain.
    """

    task: str
    learned: bool
    images: int
    given: float
    free: float | None
    recognised: float | None
    unseen: float | None


def remeasure(
    model: LearnedModel, domain: PreparedDomain, tick: Callable[[int], None] = lambda images: None
) -> Remeasured:
    """Measure a model on a domain's test split.

    Args:
        model: of a run.
        domain: decoded at the backbone's size.
        tick: told of each batch's images.
    """
    table = ImageTable.open(domain.tables["test"])
    record = model.tasks.get(domain.name)
    learned = record is not None
    free = bool(model.tasks) and model.state.method.policy != "given"
    tells = model.state.identifier is not None
    names = tuple(Candidate(name, templates=tuple(domain.templates)) for name in domain.classes)
    own = Wish(None, domain.name, 1) if learned else Wish(names, None, 1)
    right = {"given": 0, "free": 0, "recognised": 0, "unseen": 0}
    for start in range(0, len(table), BATCH):
        rows = np.arange(start, min(start + BATCH, len(table)))
        truth = [domain.classes[int(label)] for label in table.labels[rows]]
        asked = [own, Wish(None, None, 1)] if free else [own]
        wishes = [wish for wish in asked for _ in rows]
        images = np.tile(np.arange(len(rows)), len(asked))
        answers, _ = model.runtime.answer(
            model.state, model.texts, table.images(rows), wishes, images=images
        )
        right["given"] += _right(answers[: len(rows)], truth)
        if free:
            told = answers[len(rows) :]
            right["free"] += _right(told, truth)
            right["recognised"] += sum(answer.task == domain.name for answer in told)
            right["unseen"] += sum(answer.unseen for answer in told)
        tick(len(rows))
    count = max(1, len(table))
    share = {key: 100.0 * value / count for key, value in right.items()}
    return Remeasured(
        domain.name,
        learned,
        len(table),
        share["given"],
        share["free"] if free and learned else None,
        share["recognised"] if free and tells and learned else None,
        share["unseen"] if free and tells else None,
    )


def _right(answers: list[Answer], truth: list[str]) -> int:
    return sum(_top(answer) == name for answer, name in zip(answers, truth, strict=True))


def _top(answer: Answer) -> str | None:
    return answer.classes[0][0] if answer.classes else None
