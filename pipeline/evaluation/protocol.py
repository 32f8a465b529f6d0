"""The settings in which every method is measured: who knows the task, and what the candidates are.

- `mtil_given`: the task is given, its class list is scored.
- `mtil_identified`: the likeliest task picks the function, the task's class list is scored.
- `xtail`: candidates are all (task, class) pairs of the stream; task and class must be right.
- `xtail_merged`: the same, the name must be right: class names collide across domains.
- `cil`: where one domain was cut into steps; candidates are the classes of the steps so far.

All answers are those of the learned model (`pipeline/learned/answering.py`).

Shapes: N test images of a task, P pairs of the stream, C classes of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.identifiers import Identification
from archipelago.pipeline.identifiers.oracle import certain
from archipelago.pipeline.learned.answering import Answered, Question, blind
from archipelago.pipeline.learned.candidates import Candidate, Candidates, match
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.methods import Method, View
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import ClassList, Prompted, class_list
from archipelago.pipeline.streams import PreparedDomain

SETTINGS = ("mtil_given", "mtil_identified", "xtail", "xtail_merged")
CIL = "cil"  # only of streams that are cut into steps, and of the steps learned so far
DEBIAS = 0.5  # of the debiased zero-shot row, for methods without one of their own


@dataclass(frozen=True, eq=False)
class TaskMeasurement:
    """What was found on the test images of one task.

    Attributes:
        right: per setting, (N,) whether the answer was right; a setting that the method has no
            answer in is missing.
        outside: (N,) p(u|x) at the stream's candidates; None without identification.
    """

    right: dict[str, np.ndarray]
    outside: np.ndarray | None


def stream_pairs(domains: Sequence[PreparedDomain]) -> tuple[Candidate, ...]:
    """Every class of every domain: the candidates of X-TAIL."""
    return tuple(
        Candidate(name, domain.name, tuple(domain.templates))
        for domain in domains
        for name in domain.classes
    )


def measure(
    state: State,
    view: View,
    found: Identification | None,
    domain: PreparedDomain,
    labels: np.ndarray,
    pairs: tuple[Candidate, ...],
    seen: tuple[Candidate, ...] = (),
) -> TaskMeasurement:
    """One task's test images in all settings that the method has answers in.

    `seen` are the classes of the steps so far where one domain was cut into steps.
    """
    own = tuple(pair for pair in pairs if pair.task == domain.name)
    right = {"mtil_given": _given(state, view, domain, own, labels)}
    policy = state.method.policy
    if policy == "given":
        return TaskMeasurement(right, None)
    candidates = match(pairs, state.records)
    question, said = _asked(state, candidates, view, found)
    right["xtail"] = _strict(said, candidates, domain, labels)
    right["xtail_merged"] = _merged(said, candidates, domain, labels)
    if any(pair.task == domain.name for pair in seen):
        right[CIL] = right["xtail"]
        if len(seen) < len(pairs):
            few = match(seen, state.records)
            right[CIL] = _strict(_asked(state, few, view, found)[1], few, domain, labels)
    if found is None:  # one function answers for every image, whoever says what it is
        right["mtil_identified"] = right["mtil_given"]
        return TaskMeasurement(right, None)
    listed = class_list(domain.classes, domain.templates)
    answer = blind(state, view, found, listed, question.outside)
    right["mtil_identified"] = answer.argmax(axis=1) == labels
    return TaskMeasurement(right, question.outside)


def _given(
    state: State,
    view: View,
    domain: PreparedDomain,
    own: tuple[Candidate, ...],
    labels: np.ndarray,
) -> np.ndarray:
    """(N,): the task is given; before it was learned that is frozen CLIP."""
    learned = domain.name in state.records
    task = domain.name if learned else None
    truth = None
    if state.identifier is not None:
        truth = certain(task, sorted(state.records), len(view))
    candidates = match(own, state.records, task)
    _, said = _asked(state, candidates, view, truth, task)
    return _strict(said, candidates, domain, labels)


def _asked(
    state: State,
    candidates: Candidates,
    view: View,
    found: Identification | None,
    task: str | None = None,
) -> tuple[Question, Answered]:
    question = Question(state, candidates, view, found, task)
    view.prepare(question.pairs())
    return question, question.answer()


def _strict(
    said: Answered, candidates: Candidates, domain: PreparedDomain, labels: np.ndarray
) -> np.ndarray:
    """(N,) whether the likeliest pair is the right one."""
    place = {name: index for index, name in enumerate(domain.classes)}
    codes = [k.number if k.task == domain.name else -1 for k in candidates.known]
    codes += [place[o.name] if o.task == domain.name else -1 for o in candidates.outside]
    best = np.concatenate([said.log_known, said.log_outside], axis=1).argmax(axis=1)
    return np.array(codes)[best] == labels


def _merged(
    said: Answered, candidates: Candidates, domain: PreparedDomain, labels: np.ndarray
) -> np.ndarray:
    """(N,) whether the likeliest name is the right one."""
    where = {name: index for index, name in enumerate(candidates.names)}
    wanted = np.array([where[name] for name in domain.classes])
    return said.log_names(candidates).argmax(axis=1) == wanted[labels]


def zero_shot(
    method: Method,
    view: View,
    domain: PreparedDomain,
    labels: np.ndarray,
    pairs: tuple[Candidate, ...],
) -> dict[str, np.ndarray]:
    """Frozen CLIP in every setting, (N,) right or not; also debiased, as `<setting>/debiased`."""
    text_PF = view.text(class_list_of(pairs), None)
    mine = np.array([pair.task == domain.name for pair in pairs])
    names = list(dict.fromkeys(pair.name for pair in pairs))
    column = np.array([names.index(pair.name) for pair in pairs])
    right: dict[str, np.ndarray] = {}
    for suffix, debias in (("", 0.0), ("/debiased", method.debias or DEBIAS)):
        v_NF = view.frozen.astype(np.float64)
        if debias and method.basis is not None:
            v_NF = v_NF - debias * method.basis.frozen_mean
        scores = method.scale * v_NF @ text_PF.astype(np.float64).T
        listed = scores[:, mine].argmax(axis=1) == labels
        best = scores.argmax(axis=1)
        first = int(np.flatnonzero(mine)[0])
        p = np.exp(log_softmax(scores))
        merged = np.stack([p[:, column == i].sum(axis=1) for i in range(len(names))], axis=1)
        wanted = np.array([names.index(name) for name in domain.classes])
        found: Mapping[str, np.ndarray] = {
            "mtil_given": listed,
            "mtil_identified": listed,
            "xtail": best == first + labels,
            "xtail_merged": merged.argmax(axis=1) == wanted[labels],
        }
        right |= {f"{setting}{suffix}": value for setting, value in found.items()}
    return right


def class_list_of(pairs: Sequence[Candidate]) -> ClassList:
    """Pairs as CLIP reads them."""
    return tuple(Prompted(pair.name, pair.templates) for pair in pairs)
