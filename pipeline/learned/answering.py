"""Who answers, for any candidates: the one implementation that evaluation and serving call.

The policy is the method's (`pipeline/methods/base.py`). `posterior` is method 7.5:

    logit p(u|x) = a (r - r_0) + kappa (lse_U s - lse_K s)
    p(t, c|x) = (1 - p(u|x)) p(t|x) p(c|x, t) over the known candidates K, normalised
    p(c|x)    = p(u|x) softmax(s) over those nobody learned, U, and all bare names

A share of joint class scores may be mixed into the second (method 7.6).
With `hard` the likeliest domain answers alone where p(u|x) <= 1/2, and frozen CLIP over U
elsewhere, fused with the likeliest groups where the method does so (method 2.8). All in log space.

Shapes: B images, T domains, C classes, N known candidates, O candidates outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from archipelago.pipeline.closedform.joint import mixed
from archipelago.pipeline.identifiers import Identification
from archipelago.pipeline.learned.candidates import Candidates
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.methods.view import Function, View
from archipelago.pipeline.records import ClassList

LEAST_SHARE, MOST_GROUPS = 0.02, 2  # of a posterior: whose groups run for an image
Pair = tuple[int, Function]


@dataclass(frozen=True, eq=False)
class Answered:
    """What is held of B images, given some candidates.

    Attributes:
        log_known: (B, N) of the known candidates.
        log_outside: (B, O) of those outside.
        outside: (B,) p(u|x): probability of being of no learned domain, given the candidates.
        log_shares: (B, T) of the domains with a known candidate, normalised.
        speaking: per image, groups that speak for it although it is taken for unseen.
    """

    log_known: np.ndarray
    log_outside: np.ndarray
    outside: np.ndarray
    log_shares: np.ndarray
    speaking: tuple[tuple[tuple[str, float], ...], ...] = ()

    def log_names(self, candidates: Candidates) -> np.ndarray:
        """(B, n) of the distinct names: what equal names have adds up."""
        found = np.full((len(self.outside), len(candidates.names)), -np.inf)
        for where, part in (
            (candidates.of_known, self.log_known),
            (candidates.of_outside, self.log_outside),
        ):
            np.logaddexp.at(found.T, where, part.T)  # one after another, in their order
        return found


class Question:
    """Some images with the same candidates: first it says what must be computed, then it answers.

    Args:
        state: what was learned.
        candidates: matched with it.
        view: of the images.
        found: what the identifier says of them; None for methods that do not identify.
        task: the domain, where it is given.
    """

    def __init__(
        self,
        state: State,
        candidates: Candidates,
        view: View,
        found: Identification | None,
        task: str | None = None,
    ) -> None:
        self.state, self.candidates, self.view = state, candidates, view
        self.task = task
        self.found = found if found is None or task is not None else _chosen(state, found, view)
        method = state.method
        text_OF = view.text(candidates.listed, None)
        self.s_BO = method.outside_scores(view, text_OF, candidates.unknown)
        self.log_shares = self._shares()
        self.outside = self._outside()
        self.taken = self.outside > 0.5

    def _shares(self) -> np.ndarray:
        """(B, T) over the domains with a known candidate; a given one has them all."""
        tasks = self.candidates.tasks
        if self.found is None or self.task is not None:
            return np.zeros((len(self.view), len(tasks)))
        columns = [self.found.options.index(task) for task in tasks]
        z = self.found.log_shares[:, columns]
        total = np.logaddexp.reduce(z, axis=1, keepdims=True, initial=-np.inf)
        return np.where(np.isfinite(total), z - np.where(np.isfinite(total), total, 0.0), z)

    def _outside(self) -> np.ndarray:
        """(B,) p(u|x)."""
        count, unknown = len(self.view), self.candidates.unknown
        if not self.candidates.known:
            return np.ones(count)
        if not unknown.any() or self.found is None:
            return np.zeros(count)
        records, method = self.state.records, self.state.method
        known = [
            method.clip_scores(self.view, _texts(records[task].text_CF, index))
            for task, (_, index) in self.candidates.columns.items()
        ]
        gap = _lse(self.s_BO[:, unknown]) - _lse(np.concatenate(known, axis=1))
        return np.exp(-np.logaddexp(0.0, -(self.found.log_odds + method.kappa * gap)))

    # -- what must be computed ---------------------------------------------------------------

    def pairs(self) -> list[Pair]:
        """Images and the functions whose features of them are needed."""
        wanted: list[Pair] = []
        for row in range(len(self.view)):
            wanted += [(row, f) for f in self._functions(row) if f.weights is not None]
        return wanted

    def _functions(self, row: int) -> list[Function]:
        policy, state = self.state.method.policy, self.state
        if policy == "one":
            function = state.function(None)
            return [] if function is None else [function]
        if not self.candidates.known:
            return self._speakers(row)
        if policy == "posterior":
            return [f for f in self._running(row) if f is not None]
        if self.taken[row]:
            return self._speakers(row)
        return self._named([self.candidates.tasks[int(self.log_shares[row].argmax())]])

    def _running(self, row: int) -> list[Function | None]:
        """Functions of the likeliest domains, whose groups run for an image."""
        shares = np.exp(self.log_shares[row])
        order = np.argsort(-shares, kind="stable")[:MOST_GROUPS]
        names = [self.candidates.tasks[at] for at in order if shares[at] > LEAST_SHARE]
        return [self.state.function(name) for name in names]

    def _named(self, tasks: Sequence[str]) -> list[Function]:
        found = [self.state.function(task) for task in tasks]
        return [function for function in found if function is not None]

    def _speakers(self, row: int) -> list[Function]:
        if not self.state.weight:
            return []
        return self._named([task for task, _ in self.state.speakers(self.found, row)])

    # -- the answer --------------------------------------------------------------------------

    def answer(self) -> Answered:
        """Log-probabilities of all candidates; what `pairs` names is prepared in the view."""
        answer = {
            "posterior": self._posterior,
            "hard": self._hard,
            "given": self._hard,
            "one": self._one,
        }[self.state.method.policy]
        return answer()

    def _posterior(self) -> Answered:
        known = np.full((len(self.view), len(self.candidates.known)), -np.inf)
        running = [set(self._running(row)) for row in range(len(self.view))]
        for column, task in enumerate(self.candidates.tasks):
            function = self.state.function(task)
            assert function is not None
            at, index = self.candidates.columns[task]
            runs = np.array([function.weights is None or function in some for some in running])
            for rows, chosen in (
                (np.flatnonzero(runs), function),
                (np.flatnonzero(~runs), function._replace(weights=None)),
            ):
                if len(rows):
                    p = self._scores(rows, chosen)[:, index]
                    known[np.ix_(rows, at)] = self.log_shares[rows, column, None] + p
        with np.errstate(divide="ignore"):
            log_in, log_out = np.log1p(-self.outside)[:, None], np.log(self.outside)[:, None]
        return Answered(
            self._joined(_normalised(known)) + log_in,
            log_softmax(self.s_BO) + log_out if self.s_BO.size else self.s_BO,
            self.outside,
            self.log_shares,
        )

    def _joined(self, known: np.ndarray) -> np.ndarray:
        """With a share of joint class scores (7.6), where an image may be of several domains: one
        that alone is asked, given or certain answers alone."""
        share = self.state.method.joint_share
        several = np.isfinite(self.log_shares).sum(axis=1) > 1
        scores = self.state.method.joint_scores(self.view) if share and several.any() else None
        if scores is None:
            return known
        joint = np.full_like(known, -np.inf)
        for task, (at, index) in self.candidates.columns.items():
            joint[:, at] = scores[task][:, index]
        joint[~np.isfinite(known)] = -np.inf
        both = mixed(known, _normalised(joint), share)
        return np.where(several[:, None], both, known)

    def _hard(self) -> Answered:
        known = np.full((len(self.view), len(self.candidates.known)), -np.inf)
        outside = np.full(self.s_BO.shape, -np.inf)
        speaking: list[tuple[tuple[str, float], ...]] = [()] * len(self.view)
        if self.candidates.tasks:
            best = self.log_shares.argmax(axis=1)
            for column, task in enumerate(self.candidates.tasks):
                rows = np.flatnonzero((best == column) & ~self.taken)
                if len(rows):
                    at, index = self.candidates.columns[task]
                    function = self.state.function(task)
                    assert function is not None
                    p = self._scores(rows, function)[:, index]
                    known[np.ix_(rows, at)] = _normalised(p)
        rows = np.flatnonzero(self.taken)
        unknown = np.flatnonzero(self.candidates.unknown)
        if len(rows) and len(unknown):
            listed = tuple(self.candidates.listed[i] for i in unknown)
            frozen = log_softmax(self.s_BO[np.ix_(rows, unknown)])
            fused, spoke = self.state.fused(self.view.take(rows), self._at(rows), listed, frozen)
            outside[np.ix_(rows, unknown)] = fused
            for row, said in zip(rows.tolist(), spoke, strict=True):
                speaking[row] = said
        return Answered(known, outside, self.outside, self.log_shares, tuple(speaking))

    def _at(self, rows: np.ndarray) -> Identification | None:
        return None if self.found is None else self.found.rows(rows)

    def _one(self) -> Answered:
        """One function scores every candidate, learned or not, by its class name."""
        records, view = self.state.records, self.view
        function = self.state.function(None)
        known = tuple(records[item.task].listed[item.number] for item in self.candidates.known)
        mine = np.flatnonzero(self.candidates.unknown)
        listed = known + tuple(self.candidates.listed[i] for i in mine)
        outside = np.full(self.s_BO.shape, -np.inf)
        if not listed:
            return Answered(np.zeros((len(view), 0)), outside, self.outside, self.log_shares)
        if function is None:
            scores = log_softmax(self.state.method.clip_scores(view, view.text(listed, None)))
        else:
            found = self.state.method.scores(view, function, listed)
            assert found is not None
            scores = found
        outside[:, mine] = scores[:, len(known) :]
        none = np.zeros(len(view)) if function is not None else self.outside
        return Answered(scores[:, : len(known)], outside, none, self.log_shares)

    def _scores(self, rows: np.ndarray, function: Function) -> np.ndarray:
        """Log-probabilities (n, C) of a domain's own classes under its function."""
        listed = self.state.records[function.task].listed
        found = self.state.method.scores(self.view.take(rows), function, listed)
        assert found is not None, f"{function.task} does not know its own classes"
        return found


def blind(
    state: State, view: View, found: Identification, listed: ClassList, outside: np.ndarray
) -> np.ndarray:
    """Log-probabilities (B, C) of one class list by the likeliest domain's function.

    The setting *MTIL, identified*: the list is that of the evaluated domain, whoever answers.
    Frozen CLIP answers where p(u|x) > 1/2, fused where the method does so, and where the function
    does not know the list. A list that no function knows is one of classes that nobody learned.
    """
    new = np.full(len(listed), all(record.listed != listed for record in state.records.values()))
    frozen = log_softmax(state.method.outside_scores(view, view.text(listed, None), new))
    if not found.options:
        return frozen
    taken, best = outside > 0.5, _chosen(state, found, view).closed
    answer = frozen.copy()
    pairs: list[Pair] = []
    for column, task in enumerate(found.options):
        function = state.function(task)
        if function is not None and function.weights is not None:
            pairs += [(int(row), function) for row in np.flatnonzero((best == column) & ~taken)]
    rows = np.flatnonzero(taken)
    for row in rows.tolist() if state.weight else ():
        for task, _ in state.speakers(found, row):
            function = state.function(task)
            assert function is not None
            pairs.append((row, function))
    view.prepare(pairs)
    for column, task in enumerate(found.options):
        function, mine = state.function(task), np.flatnonzero((best == column) & ~taken)
        if function is not None and len(mine):
            scores = state.method.scores(view.take(mine), function, listed)
            if scores is not None:
                answer[mine] = scores
    if len(rows):
        answer[rows] = state.fused(view.take(rows), found.rows(rows), listed, frozen[rows])[0]
    return answer


def _chosen(state: State, found: Identification, view: View) -> Identification:
    shares = state.method.choose(found.options, found.log_shares, view.compact)
    return found if shares is found.log_shares else replace(found, log_shares=shares)


def _texts(text_CF: np.ndarray | None, index: np.ndarray) -> np.ndarray:
    assert text_CF is not None
    return text_CF[index]


def _lse(z: np.ndarray) -> np.ndarray:
    """Row by row, (B,)."""
    return np.logaddexp.reduce(z, axis=1)


def _normalised(log_p: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; nothing stays nothing."""
    if not log_p.size:
        return log_p
    total = _lse(log_p)[:, None]
    return np.where(np.isfinite(total), log_p - np.where(np.isfinite(total), total, 0.0), log_p)
