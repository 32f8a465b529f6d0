"""A run in one process: frozen CLIP, the basis, and states made from stored records.

Shapes: B images, S side of the backbone's input.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archipelago.pipeline.config import stored_settings
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifiers import Evidence, Identification
from archipelago.pipeline.learned.answering import Question
from archipelago.pipeline.learned.asking import Answer, Ask
from archipelago.pipeline.learned.candidates import Candidate, Candidates, match
from archipelago.pipeline.learned.consult import ConsultRequest, consult_requests
from archipelago.pipeline.learned.library import Library
from archipelago.pipeline.learned.passes import FeaturePass
from archipelago.pipeline.learned.replies import reply
from archipelago.pipeline.learned.state import State, build_state
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.learned.views import LiveView
from archipelago.pipeline.methods import build_method
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.model.kernels import Kernels, resolve_device
from archipelago.pipeline.records.basis import read_basis
from archipelago.pipeline.records.classes import TEMPLATES
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder


@dataclass(frozen=True)
class Wish:
    """One image's question in general form: candidates are names or pairs, None = all learned.

    Attributes:
        candidates: what it may be.
        task: the domain, where it is given.
        top_k: how many names come back.
        shares: settled log shares by domain; None = the identifier says.
    """

    candidates: tuple[Candidate, ...] | None = None
    task: str | None = None
    top_k: int = 5
    shares: tuple[tuple[str, float], ...] | None = None

    @classmethod
    def of(cls, ask: Ask) -> Wish:
        """From what came over a wire."""
        named = None
        if ask.labels is not None:
            templates = ask.templates or TEMPLATES
            named = tuple(Candidate(name, templates=templates) for name in ask.labels)
        return cls(named, ask.task, ask.top_k, ask.shares)


class Runtime:
    """Answers from any state of one run.

    Args:
        run: the run folder; its `run.json` says what the model is.
        device: `auto`, `cpu` or `cuda`.
        backbone: where the run's backbone lies on this machine; None = as the run names it.

    Raises:
        UserError: not a run, or another backbone than the run's.
    """

    def __init__(self, run: RunFolder, device: str = "auto", backbone: str | None = None) -> None:
        self.run = run
        document = run.read()
        self.settings: Settings = stored_settings(document)
        if backbone is not None:
            named = self.settings.backbone.model_copy(update={"name": backbone})
            self.settings = self.settings.model_copy(update={"backbone": named})
        kernels = Kernels.stored(document["kernels"] or {}, resolve_device(device))
        self.backbone = load_backbone(self.settings.backbone, kernels.device, kernels)
        if self.backbone.digest() != document["backbone"]["sha256"]:
            raise UserError(
                f"backbone.name: '{self.settings.backbone.name}' has other weights than those"
                f" {run.folder.shown()} was learned with"
            )
        self.basis = read_basis(run)
        self.library = Library(run)
        trunk = build_method(self.settings, self.basis, self.backbone)
        self._pass = FeaturePass(trunk, self.settings.identifier)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """The run's attention kernel, for all threads of this process while it lasts."""
        with self.backbone.kernels.exact():
            yield

    def state(self, refs: Sequence[GroupRef]) -> State:
        """The state of some stored groups.

        Raises:
            IntegrityError: a file is missing, altered, or not what it should be.
            ValueError: a group does not fit the others or the backbone.
        """
        groups = self.library.all(refs)
        with self.exact():
            return build_state(groups, self.settings, self.basis, backbone=self.backbone)

    def texts(self, state: State) -> Texts:
        """Class features by name, of a state's functions; those that records hold are there."""

        def encode(listed: Any, function: Any) -> np.ndarray:
            with self.exact():
                return state.method.encode_list(listed, function).detach().cpu().numpy()

        texts = Texts(encode)
        texts.remember(state)
        return texts

    def embed(self, images_BSSC: np.ndarray) -> np.ndarray:
        """Normalised features (B, F) of frozen CLIP, of uint8 images of the backbone's size.

        An image's features do not depend on the others beyond float32's rounding.
        """
        return self._pass.raw(np.ascontiguousarray(images_BSSC))[2]

    def view(self, state: State, images_BSSC: np.ndarray, texts: Texts) -> LiveView:
        """A view of uint8 images of the backbone's size."""
        passed = self._pass(np.ascontiguousarray(images_BSSC), self.basis)
        return LiveView(state.method, passed, texts, state.versions)

    def answer(
        self,
        state: State,
        texts: Texts,
        images_BSSC: np.ndarray,
        wishes: Sequence[Wish],
        unsure: list[ConsultRequest] | None = None,
        abstain: float | None = None,
        images: np.ndarray | None = None,
        features: list[np.ndarray] | None = None,
    ) -> tuple[list[Answer], dict[str, float]]:
        """Answers, and how many milliseconds each part took.

        Args:
            state: what answers.
            texts: of that state.
            images_BSSC: uint8, of the backbone's size.
            wishes: one an image, or an answer.
            unsure: takes the images on whose domain a second opinion is worth having.
            abstain: share of the learned tasks' images that may be refused; None = nobody is.
            images: which image each wish is about, where one is asked about several times.
            features: takes the images' normalised features (B, F) of frozen CLIP.

        Raises:
            KeyError: a domain that was not learned.
            UserError: the method needs to be told the domain.
        """
        clock = time.perf_counter()
        view = self.view(state, images_BSSC, texts)
        if images is not None:
            view = view.take(images)
        seen = time.perf_counter()
        if features is not None:
            features.append(view.frozen)
        found = identify(state, view, wishes)
        if unsure is not None and found is not None and state.identifier is not None:
            free = [i for i, w in enumerate(wishes) if w.task is None and w.shares is None]
            unsure += consult_requests(state.identifier, found.rows(free), np.array(free, np.int64))
        identified = time.perf_counter()
        threshold = None
        if abstain is not None and state.identifier is not None:
            threshold = state.identifier.refusal_threshold(abstain)
        parts = _parts(state, view, wishes, found)
        view.prepare([(int(rows[at]), f) for rows, q in parts for at, f in q.pairs()])
        passed = time.perf_counter()
        answers: list[Answer | None] = [None] * len(wishes)
        for rows, question in parts:
            said = question.answer()
            for at, row in enumerate(rows.tolist()):
                answers[row] = reply(question, said, at, wishes[row].top_k, threshold)
        done = time.perf_counter()
        spent = {
            "trunk": seen - clock,
            "identify": identified - seen,
            "groups": passed - identified,
            "text": done - passed,
        }
        return [a for a in answers if a is not None], {k: 1000.0 * s for k, s in spent.items()}


def identify(state: State, view: LiveView, wishes: Sequence[Wish]) -> Identification | None:
    """What the statistics say of all images, with what is settled or given in its place.

    Raises:
        UserError: the method does not identify, and a domain is not given.
    """
    if state.identifier is None:
        if state.method.policy == "given" and any(w.task is None for w in wishes) and state.records:
            raise UserError(
                f"method {state.method.name} does not tell domains apart: give task, one of"
                f" {', '.join(state.records)}"
            )
        return None
    found = state.identifier.alone.identify(Evidence(view.compact))
    for row, wish in enumerate(wishes):
        if wish.shares is not None:
            known: Mapping[str, float] = dict(wish.shares)
            found.log_shares[row] = [known.get(option, -np.inf) for option in found.options]
        if wish.task is not None:
            given = [option == wish.task for option in found.options]
            found.log_shares[row] = np.where(given, 0.0, -np.inf)
    return found


def _matched(state: State, asked: tuple[Candidate, ...] | None, task: str | None) -> Candidates:
    """Candidates matched with what a state knows; all that was learned is matched once."""
    if asked is not None:
        return match(asked, state.records, task)
    key = ("candidates", task)
    if key not in state.derived:
        state.derived[key] = match(None, state.records, task)
    return state.derived[key]


def _parts(
    state: State, view: LiveView, wishes: Sequence[Wish], found: Identification | None
) -> list[tuple[np.ndarray, Question]]:
    """Images with the same candidates and the same given domain, each kind a question."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for row, wish in enumerate(wishes):
        if wish.task is not None and wish.task not in state.records:
            raise KeyError(wish.task)
        kinds.setdefault((wish.candidates, wish.task), []).append(row)
    parts = []
    for (asked, task), at in kinds.items():
        rows = np.array(at)
        candidates = _matched(state, asked, task)
        some = None if found is None else found.rows(rows)
        parts.append((rows, Question(state, candidates, view.take(rows), some, task)))
    return parts
