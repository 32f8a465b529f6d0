"""One image's answer in plain values, from what is held of a batch."""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.learned.answering import LEAST_SHARE, MOST_GROUPS, Answered, Question
from archipelago.pipeline.learned.asking import Answer

Named = tuple[tuple[str, float], ...]


def reply(
    question: Question, said: Answered, row: int, top_k: int, threshold: float | None
) -> Answer:
    """The answer to one image of a question.

    Args:
        question: the images and their candidates.
        said: what is held of them.
        row: which of them.
        top_k: how many names come back.
        threshold: novelty above which no learned domain answers; None = never.
    """
    found, method = question.found, question.state.method
    unseen = bool(said.outside[row] > 0.5)
    domains: Named = ()
    probability = None
    if found is not None:
        shares = np.exp(found.log_shares[row])
        order = np.argsort(-shares, kind="stable")
        domains = tuple((found.options[o], float(shares[o])) for o in order if shares[o])
        probability = float(found.unseen[row])
        known = question.task is None and not unseen  # a learned domain would answer
        if known and threshold is not None and found.novelty[row] > threshold:
            return Answer(None, probability, True, 0.0, (), (), domains, probability, True)
    task, confidence = _recognised(question, said, row, unseen)
    groups, weight = _groups(question, said, row, task, unseen)
    if method.policy == "one":
        unseen = task is None and not question.state.records
    names = question.candidates.names
    p = np.exp(_names_row(question, said, row))
    best = np.argsort(-p, kind="stable")[:top_k]
    classes = tuple((names[at], float(p[at])) for at in best)
    return Answer(task, confidence, unseen, weight, groups, classes, domains, probability)


def _recognised(
    question: Question, said: Answered, row: int, unseen: bool
) -> tuple[str | None, float]:
    if question.task is not None:
        return question.task, 1.0
    outside = float(said.outside[row])
    if question.found is None:
        return None, 1.0
    if unseen or not question.candidates.tasks:
        return None, outside
    best = int(said.log_shares[row].argmax())
    return question.candidates.tasks[best], (1.0 - outside) * float(
        np.exp(said.log_shares[row, best])
    )


def _groups(
    question: Question, said: Answered, row: int, task: str | None, unseen: bool
) -> tuple[Named, float]:
    """Who was at work, and the share of the groups where frozen CLIP has a part too."""
    state, tasks = question.state, question.candidates.tasks
    if said.speaking and said.speaking[row]:
        spoke = tuple((name, state.weight * share) for name, share in said.speaking[row])
        return spoke, state.weight
    if state.method.policy == "posterior" and tasks:
        inside = 1.0 - float(said.outside[row])
        shares = np.exp(said.log_shares[row])
        order = np.argsort(-shares, kind="stable")[:MOST_GROUPS]
        heard = tuple((tasks[o], inside * float(shares[o])) for o in order)
        kept = tuple((name, share) for name, share in heard if share > LEAST_SHARE)
        return kept, inside if inside < 1.0 else 0.0
    if unseen:
        return (), 0.0
    function = state.function(task)
    if function is None:
        return (), 0.0
    return tuple(state.method.contributions(function).items()), 0.0


def _names_row(question: Question, said: Answered, row: int) -> np.ndarray:
    one = Answered(
        said.log_known[row : row + 1],
        said.log_outside[row : row + 1],
        said.outside[row : row + 1],
        said.log_shares[row : row + 1],
    )
    return one.log_names(question.candidates)[0]
