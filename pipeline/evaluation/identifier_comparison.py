"""Identifiers side by side on one finished run: the same groups, images and calibration rows.

Each identifier knows the run's tasks anew, stage by stage, from stored records, and decides on the
test images; nothing is trained, and every score is kept in the run folder.

Shapes: N stages and tasks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.evaluator import Evaluator, image_source
from archipelago.pipeline.evaluation.views import Encoder
from archipelago.pipeline.identifier_settings import for_identifier
from archipelago.pipeline.identifiers import (
    Description,
    Evidence,
    Identification,
    Identifier,
    ImageSource,
    ScoreCache,
    build_identifier,
)
from archipelago.pipeline.identifiers.calibration import ConsultRule, floored, margins_of
from archipelago.pipeline.identifiers.cascade import Cascade
from archipelago.pipeline.identifiers.describer import Describer
from archipelago.pipeline.identifiers.scorer import Scorer
from archipelago.pipeline.learned.state import State, build_state
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, PreparedDomain

Stage = tuple[dict[str, Identification], dict[str, np.ndarray]]
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
WOULD_BE = 0.5  # weight of the model's answer in a curve of a cascade that asks nobody
TIMED = 64  # images that are scored anew to measure speed


@dataclass(frozen=True)
class IdentifierVariant:
    """An identifier and how it asks; `scoring` is None for those without a model."""

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
class ComparisonRow:
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


class IdentifierComparison:
    """Compares identifiers on a run.

    Args:
        run: a finished run, locked by the caller.
        settings: of the run; its identifier section says how the model is used, whatever the run's
            own identifier was (`for_identifier`).
        domains: decoded tasks in stream order.
        encoder: computes what is not stored yet.
        basis: of compact features.
        scale: `exp(logit_scale)`.
        scorer: the multimodal model.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        basis: Basis,
        scale: float,
        scorer: Scorer,
    ) -> None:
        self.run, self.settings, self.encoder = run, settings, encoder
        self.domains, self.basis, self.scale = list(domains), basis, scale
        self.scorer = scorer
        self.evaluator = Evaluator(run, settings, domains, encoder, basis.width)
        self._groups: list[GroupRecord] = []
        self._speeds: dict[str, float] = {}
        self._total: dict[str, Any] = {}
        self.curve: list[dict[str, float]] = []

    def _with(self, variant: IdentifierVariant) -> Settings:
        """The run's settings with another identifier."""
        changes = {} if variant.scoring is None else {"scoring": variant.scoring}
        chosen = for_identifier(self.settings.identifier, variant.name, **changes)
        return self.settings.model_copy(update={"identifier": chosen})

    def _score_cache(self, settings: Settings) -> ScoreCache:
        folder = self.run.folder.child("identifier")
        return ScoreCache(self.scorer, settings.multimodal, settings.seed, folder)

    # -- what the run knows ------------------------------------------------------------------

    def read(self) -> list[str]:
        """Read the records and, where they have none, describe the tasks; returns the tasks."""
        chosen = self._with(IdentifierVariant("mllm"))
        writer = build_identifier(chosen.identifier, self.basis, self._score_cache(chosen))
        describer = Describer(writer, self.settings)
        known = {domain.name: domain for domain in self.domains}
        for ref in self.run.current_groups():
            if ref.name not in known:
                continue
            group = GroupRecord.read(self.run, ref)
            if len(group.tasks) > 1:
                raise UserError(
                    f"{ref.folder}: holds several tasks; identifiers are compared stage"
                    " by stage on runs with one task in each"
                )
            (record,) = group.tasks
            if record.description is None:
                told = describer.description(known[ref.name])
                record = replace(record, description=told.asdict() if told else None)
            self._groups.append(group.with_tasks([record]))
            self.encoder.install([ref])
        return self._learned

    @property
    def _learned(self) -> list[str]:
        return [group.name for group in self._groups]

    @property
    def descriptions(self) -> dict[str, Description | None]:
        """Each task in words."""
        return {g.name: Description.load(g.tasks[0].description) for g in self._groups}

    # -- one identifier ----------------------------------------------------------------------

    def row(self, variant: IdentifierVariant) -> ComparisonRow:
        """Learn and measure all stages with one identifier."""
        settings = self._with(variant)
        score_cache = None if variant.scoring is None else self._score_cache(settings)
        matrix = np.full((len(self._groups), len(self.domains)), np.nan)
        stages: list[Stage] = []
        decided = 0
        if score_cache is not None and variant.name == "mllm" and len(self._groups) > 1:
            self._prefetch(score_cache)
        known: list[GroupRecord] = []
        for stage, group in enumerate(self._groups):
            known.append(self._studied(settings, known, group, score_cache))
            state = self._state(settings, known, score_cache)
            assert state.identifier is not None
            self.evaluator.know(state)
            before = None if score_cache is None else vars(score_cache.usage).copy()
            found = {
                d.name: state.identifier.identify(self.evaluator.evidence(d.name))
                for d in self.domains
            }
            decided += sum(len(f.novelty) for f in found.values())
            if score_cache is not None and before is not None:
                self._count(score_cache, before)
            outside: dict[str, np.ndarray] = {}
            for column, domain in enumerate(self.domains):
                measured = self.evaluator.measured(state, domain.name, found[domain.name])
                matrix[stage, column] = 100.0 * measured.right["mtil_identified"].mean()
                assert measured.outside is not None
                outside[domain.name] = measured.outside
            stages.append((found, outside))
        work = {} if score_cache is None else self._total
        self._total = {}
        row = self._summary(variant, matrix, stages, work, decided)
        assert state.identifier is not None
        row.images_per_second = self._speed(variant, state.identifier, row.calls_share)
        if isinstance(state.identifier, Cascade):
            rule = state.identifier.rule
            row.extra = {"margin": rule.margin, "weight": rule.weight}
            self.curve = self._curve(state.identifier)
        if variant.scoring == "choice":
            assert score_cache is not None
            row.extra["position_bias"] = score_cache.usage.position_bias()
        return row

    def _state(
        self, settings: Settings, groups: Sequence[GroupRecord], score_cache: ScoreCache | None
    ) -> State:
        return build_state(
            groups, settings, self.basis, scale=self.scale, score_cache=score_cache, soft=False
        )

    def _studied(
        self,
        settings: Settings,
        known: Sequence[GroupRecord],
        group: GroupRecord,
        score_cache: ScoreCache | None,
    ) -> GroupRecord:
        """The record of a stage with what this identifier would have noted while it was learned."""
        (record,) = group.tasks
        record = replace(record, study=None)
        fresh = group.with_tasks([record])
        if score_cache is None or record.rows is None:
            return fresh
        state = self._state(settings, [*known, fresh], score_cache)
        assert state.identifier is not None
        domain = self.evaluator.domains[record.name]
        table = ImageTable.open(domain.tables["train"])
        seen = image_source(table, domain.digests["train"], domain.name, record.rows.places)
        return group.with_tasks([replace(record, study=state.identifier.study(record, seen))])

    def _prefetch(self, score_cache: ScoreCache) -> None:
        """All test images against all descriptions at once: as many pairs, in less time."""
        before = vars(score_cache.usage).copy()
        for domain in self.domains:
            seen = self.evaluator.evidence(domain.name).images
            assert seen is not None
            score_cache.prefetch(seen, self._texts())
        self._count(score_cache, before)

    def _count(self, score_cache: ScoreCache, before: dict[str, Any]) -> None:
        """Add what the test images of a stage cost; calibration rows are not counted."""
        after = vars(score_cache.usage)
        for key in ("calls", "scorings", "fallbacks", "parse_failures"):
            self._total[key] = self._total.get(key, 0) + after[key] - before[key]

    def _summary(
        self,
        variant: IdentifierVariant,
        matrix: np.ndarray,
        stages: list[Stage],
        work: dict[str, Any],
        decided: int,
    ) -> ComparisonRow:
        learned = self._learned
        last, outside = stages[-1]
        place = {t: last[t].options.index(t) for t in learned}
        own = {t: 100.0 * float((last[t].closed == place[t]).mean()) for t in learned}
        none = [
            100.0 * float(((last[t].closed == place[t]) & (outside[t] <= 0.5)).mean())
            for t in learned
        ]
        aurocs, accepted, refused = [], [], []
        for stage, (found, outside) in enumerate(stages):
            seen = [found[t] for t in learned[: stage + 1]]
            fresh = [f for t, f in found.items() if t not in learned[: stage + 1]]
            known, new = learned[: stage + 1], [t for t in found if t not in learned[: stage + 1]]
            accepted.append(np.mean([(outside[t] <= 0.5).mean() for t in known]))
            if fresh:
                odd = [np.concatenate([f.novelty for f in part]) for part in (fresh, seen)]
                aurocs.append(metrics.auroc(*odd))
                refused.append(np.mean([(outside[t] > 0.5).mean() for t in new]))
        scores = {
            name: getattr(metrics, name)(matrix).mean for name in ("transfer", "average", "last")
        }
        calls = int(work.get("calls", 0))
        return ComparisonRow(
            title=variant.title,
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
        self, variant: IdentifierVariant, identifier: Identifier, share: float
    ) -> float | None:
        """Images identified per second after the last stage, once their features are there."""
        if variant.name == "oracle":
            return None
        compact = self.evaluator.view(self.domains[-1].name).compact
        clock = time.perf_counter()
        identifier.alone.identify(Evidence(compact))
        seconds = (time.perf_counter() - clock) / len(compact)
        if variant.scoring is not None:
            asked = share / 100.0 if variant.name == "cascade" else 1.0
            seconds += asked / self._model_speed(variant.scoring)
        return 1.0 / seconds

    def _model_speed(self, scoring: str) -> float:
        """Images that the model compares with all descriptions per second, nothing remembered."""
        if scoring not in self._speeds:
            chosen = self.settings.multimodal.model_copy(update={"scoring": scoring})
            evidence = self.evaluator.evidence(self.domains[-1].name)
            assert evidence.images is not None
            score_cache, texts = ScoreCache(self.scorer, chosen, self.settings.seed), self._texts()
            at = np.arange(min(TIMED, len(evidence.compact)))
            images = ImageSource(evidence.images.read)
            score_cache.scores(images, at[:2], texts)  # priors are computed once
            score_cache.take_usage()
            score_cache.scores(images, at, texts)
            self._speeds[scoring] = len(at) / max(score_cache.usage.seconds, 1e-9)
        return self._speeds[scoring]

    def _texts(self) -> list[str]:
        return [text.text for text in self.descriptions.values() if text is not None]

    def _curve(self, cascade: Cascade) -> list[dict[str, float]]:
        """Accuracy of the last stage among learned tasks, for each share of images asked about.

        Where the folds say that nobody is to be asked, the curve shows what asking would do.
        """
        evidences = [self.evaluator.evidence(task) for task in cascade.tasks]
        margins = np.concatenate(
            [margins_of(floored(cascade.prototype.identify(e).log_shares)) for e in evidences]
        )
        fitted, points = cascade.rule, []
        weight = fitted.weight or WOULD_BE
        for share in SHARES:
            margin = float(np.quantile(margins, share)) if share < 1 else 2.0
            cascade.rule = ConsultRule(margin if share else 0.0, weight)
            own = [(cascade.identify(e).closed == i).mean() for i, e in enumerate(evidences)]
            points.append(
                {"calls": 100.0 * share, "accuracy": 100.0 * float(np.mean(own)), "weight": weight}
            )
        cascade.rule = fitted
        return points
