"""Identifiers side by side on one finished run: the same groups, images and held-out folds.

Each identifier learns the run's tasks anew, stage by stage, from stored signatures and the
held-out folds, and decides on the test images; nothing is trained, and every score is kept in the
run folder.

Shapes: N stages and tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.evaluation.evaluator import Encoder, Evaluator, TaskFacts, shown
from pipeline.identifiers import (
    Description,
    Evidence,
    Identification,
    Identifier,
    Looker,
    Shown,
    Signature,
    Study,
    build_identifier,
)
from pipeline.identifiers.cascade import Cascade
from pipeline.identifiers.describer import Describer
from pipeline.identifiers.folds import Rule, margins_of
from pipeline.identifiers.scorer import Scorer
from pipeline.identifiers.signature import Background
from pipeline.methods.base import method_class
from pipeline.settings import IdentifierSettings, Settings
from pipeline.store import GroupRef, RunFolder
from pipeline.store.tensors import load
from pipeline.streams import ImageTable, PreparedDomain, stratified_fold

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
WOULD_BE = 0.5  # weight of the model's answer in a curve of a cascade that asks nobody
TIMED = 64  # images that are scored anew to measure speed


@dataclass(frozen=True)
class Candidate:
    """An identifier and how it asks; `scoring` is None for those that do not look."""

    name: str
    scoring: str | None = None

    @property
    def key(self) -> str:
        """As it is named on a command line."""
        return self.name if self.scoring is None else f"{self.name}.{self.scoring}"

    @property
    def title(self) -> str:
        """As it stands in tables."""
        return self.name if self.scoring is None else f"{self.name} ({self.scoring})"


@dataclass
class Row:
    """What one identifier reached. Percent; `None` = not defined."""

    title: str
    per_task: dict[str, float]
    closed: float
    with_none: float
    auroc: float | None
    accepted: float
    refused: float | None
    images_per_second: float | None
    calls: int
    calls_share: float
    scorings: int
    fallbacks: int
    parse_failures: int
    transfer: float | None
    average: float | None
    last: float | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Task:
    ref: GroupRef
    domain: PreparedDomain
    calibration: dict[str, Any]
    signature: Signature
    held_out: Evidence
    description: Description | None


class Comparison:
    """Compares identifiers on a run.

    Args:
        run: a finished run, locked by the caller.
        settings: of the run; its identifier section says how the model is used.
        domains: decoded tasks in stream order.
        encoder: computes what is not stored yet.
        background: what signatures are compared against.
        scorer: the multimodal model.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        background: Background,
        scorer: Scorer,
    ) -> None:
        self.run, self.settings, self.encoder = run, settings, encoder
        self.domains, self.background, self.scorer = list(domains), background, scorer
        self.method = method_class(settings.method.name)
        self._tasks: list[_Task] = []
        self._speeds: dict[str, float] = {}
        self._total: dict[str, Any] = {}
        self.curve: list[dict[str, float]] = []

    def _looker(self, chosen: IdentifierSettings) -> Looker:
        folder = self.run.folder.child("identifier")
        return Looker(self.scorer, chosen, self.settings.seed, folder)

    # -- what the run knows ------------------------------------------------------------------

    def read(self) -> list[str]:
        """Read signatures, fold features and descriptions; returns the tasks by stage."""
        chosen = self.settings.identifier.model_copy(update={"name": "mllm"})
        writer = build_identifier(chosen, self.background, looker=self._looker(chosen))
        describer = Describer(writer, self.settings)
        known = {domain.name: domain for domain in self.domains}
        for ref in self.run.groups.list():
            if ref.name not in known:
                continue
            card = json.loads(self.run.groups.read(ref, "task.json"))
            if "temperature" not in card["calibration"]:
                raise UserError(
                    f"{ref.folder}: holds several tasks; identifiers are compared stage"
                    " by stage on runs with one task in each"
                )
            arrays = load(self.run.groups.read(ref, "identity.safetensors"), ref.name)
            stored = {
                k.removeprefix("signature/"): v.numpy()
                for k, v in arrays.items()
                if k.startswith("signature/")
            }
            domain = known[ref.name]
            description = Description.load(card["description"]) or describer.description(domain)
            self._tasks.append(
                _Task(
                    ref, domain, card["calibration"], Signature.load(stored),
                    self._fold(domain), description,
                )
            )  # fmt: skip
        return [task.ref.name for task in self._tasks]

    @property
    def descriptions(self) -> dict[str, Description | None]:
        """Each task in words."""
        return {task.ref.name: task.description for task in self._tasks}

    def _fold(self, domain: PreparedDomain) -> Evidence:
        table = ImageTable.open(domain.tables["train"])
        _, held = stratified_fold(
            table.labels, self.settings.stream.held_out, self.settings.seed, domain.name
        )
        features = self.encoder.features(domain.tables["train"], held)
        seen = shown(table, domain.digests["train"], domain.name, held)
        return Evidence(features, domain.name, seen)

    # -- one identifier ----------------------------------------------------------------------

    def row(self, candidate: Candidate) -> Row:
        """Learn and measure all stages with one identifier."""
        update = {"name": candidate.name}
        if candidate.scoring is not None:
            update["scoring"] = candidate.scoring
        chosen = self.settings.identifier.model_copy(update=update)
        looker = None if candidate.scoring is None else self._looker(chosen)
        acceptance = self.settings.method.unseen.acceptance
        identifier = build_identifier(chosen, self.background, acceptance, looker)
        settings = self.settings.model_copy(update={"identifier": chosen})
        evaluator = Evaluator(
            self.run, settings, self.method, self.domains, self.encoder, identifier
        )
        matrix = np.full((len(self._tasks), len(self.domains)), np.nan)
        stages: list[dict[str, Identification]] = []
        decided = 0
        if looker is not None and candidate.name == "mllm" and len(self._tasks) > 1:
            self._prefetch(looker, evaluator)
        for stage, task in enumerate(self._tasks):
            identifier.learn(
                task.ref.name, task.signature, task.held_out.features,
                Study(task.held_out, task.description),
            )  # fmt: skip
            evaluator.learned(
                TaskFacts(
                    task.ref, task.calibration["temperature"], task.calibration["lambda_accuracy"],
                    task.ref.name,
                )
            )  # fmt: skip
            before = None if looker is None else vars(looker.work).copy()
            found = {d.name: identifier.identify(evaluator.evidence(d.name)) for d in self.domains}
            decided += sum(len(f.chosen) for f in found.values())
            if looker is not None and before is not None:
                self._count(looker, before)
            stages.append(found)
            for column, domain in enumerate(self.domains):
                right = evaluator.correct(domain.name, found[domain.name])
                matrix[stage, column] = 100.0 * right.mean()
        work = {} if looker is None else self._total
        self._total = {}
        row = self._summary(candidate, matrix, stages, work, decided)
        row.images_per_second = self._speed(candidate, identifier, evaluator, row.calls_share)
        if isinstance(identifier, Cascade):
            row.extra = {"margin": identifier.rule.margin, "weight": identifier.rule.weight}
            self.curve = self._curve(identifier, evaluator)
        if candidate.scoring == "choice":
            assert looker is not None
            row.extra["position_bias"] = looker.work.position_bias()
        return row

    def _prefetch(self, looker: Looker, evaluator: Evaluator) -> None:
        """All test images against all descriptions at once: as many pairs, in less time."""
        before = vars(looker.work).copy()
        for domain in self.domains:
            seen = evaluator.evidence(domain.name).shown
            assert seen is not None
            looker.prefetch(seen, self._texts())
        self._count(looker, before)

    def _count(self, looker: Looker, before: dict[str, Any]) -> None:
        """Add what the test images of a stage cost; held-out folds are not counted."""
        after = vars(looker.work)
        for key in ("calls", "scorings", "fallbacks", "parse_failures"):
            self._total[key] = self._total.get(key, 0) + after[key] - before[key]

    def _summary(
        self,
        candidate: Candidate,
        matrix: np.ndarray,
        stages: list[dict[str, Identification]],
        work: dict[str, Any],
        decided: int,
    ) -> Row:
        learned = [task.ref.name for task in self._tasks]
        last = stages[-1]
        own = {t: 100.0 * float((last[t].closed == i).mean()) for i, t in enumerate(learned)}
        none = [100.0 * float((last[t].chosen == i).mean()) for i, t in enumerate(learned)]
        aurocs, accepted, refused = [], [], []
        for stage, found in enumerate(stages):
            seen = [found[t] for t in learned[: stage + 1]]
            fresh = [f for t, f in found.items() if t not in learned[: stage + 1]]
            accepted.append(np.mean([(f.chosen >= 0).mean() for f in seen]))
            if fresh:
                odd = [np.concatenate([f.unseen_score for f in part]) for part in (fresh, seen)]
                aurocs.append(metrics.auroc(*odd))
                refused.append(np.mean([(f.chosen < 0).mean() for f in fresh]))
        scores = {name: getattr(metrics, name)(matrix).mean for name in
                  ("transfer", "average", "last")}  # fmt: skip
        calls = int(work.get("calls", 0))
        return Row(
            title=candidate.title,
            per_task=own,
            closed=float(np.mean(list(own.values()))),
            with_none=float(np.mean(none)),
            auroc=100.0 * float(np.mean(aurocs)) if aurocs else None,
            accepted=100.0 * float(np.mean(accepted)),
            refused=100.0 * float(np.mean(refused)) if refused else None,
            images_per_second=None,
            calls=calls,
            calls_share=100.0 * calls / decided,
            scorings=int(work.get("scorings", 0)),
            fallbacks=int(work.get("fallbacks", 0)),
            parse_failures=int(work.get("parse_failures", 0)),
            **scores,
        )

    # -- what it costs -----------------------------------------------------------------------

    def _speed(
        self, candidate: Candidate, identifier: Identifier, evaluator: Evaluator, share: float
    ) -> float | None:
        """Images identified per second after the last stage, once their features are there."""
        if candidate.name == "oracle":
            return None
        features = evaluator.features(self.domains[-1].name)
        guard = getattr(identifier, "guard", identifier)
        clock = time.perf_counter()
        guard.identify(Evidence(features))
        seconds = (time.perf_counter() - clock) / len(features)
        if candidate.scoring is not None:
            asked = share / 100.0 if candidate.name == "cascade" else 1.0
            seconds += asked / self._model_speed(candidate.scoring, evaluator)
        return 1.0 / seconds

    def _model_speed(self, scoring: str, evaluator: Evaluator) -> float:
        """Images that the model compares with all descriptions per second, nothing remembered."""
        if scoring not in self._speeds:
            chosen = self.settings.identifier.model_copy(update={"scoring": scoring})
            evidence = evaluator.evidence(self.domains[-1].name)
            assert evidence.shown is not None
            looker, texts = Looker(self.scorer, chosen, self.settings.seed), self._texts()
            at = np.arange(min(TIMED, len(evidence.features)))
            looker.look(Shown(evidence.shown.read), at[:2], texts)  # priors are computed once
            looker.take_work()
            looker.look(Shown(evidence.shown.read), at, texts)
            self._speeds[scoring] = len(at) / max(looker.work.seconds, 1e-9)
        return self._speeds[scoring]

    def _texts(self) -> list[str]:
        return [task.description.text for task in self._tasks if task.description is not None]

    def _curve(self, cascade: Cascade, evaluator: Evaluator) -> list[dict[str, float]]:
        """Accuracy of the last stage among learned tasks, for each share of images asked about.

        Where the folds say that nobody is to be asked, the curve shows what asking would do.
        """
        evidences = [evaluator.evidence(task) for task in cascade.tasks]
        margins = np.concatenate(
            [
                margins_of(np.log(np.maximum(cascade.guard.identify(e).shares, 1e-300)))
                for e in evidences
            ]
        )
        fitted, points = cascade.rule, []
        weight = fitted.weight or WOULD_BE
        for share in SHARES:
            margin = float(np.quantile(margins, share)) if share < 1 else 2.0
            cascade.rule = Rule(margin if share else 0.0, weight)
            own = [
                (cascade.identify(e).closed == i).mean() for i, e in enumerate(evidences)
            ]  # fmt: skip
            points.append(
                {"calls": 100.0 * share, "accuracy": 100.0 * float(np.mean(own)), "weight": weight}
            )
        cascade.rule = fitted
        return points
