"""Learn a stream stage by stage: what happens to one task from its first image to its record.

A stage: form the statistics of the new images, fit what the method fits, store the record, publish
a manifest, measure everything.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from archipelago.pipeline.borrowing import needed
from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.evaluation.evaluator import Evaluator, image_source
from archipelago.pipeline.evaluation.prequential import prequential
from archipelago.pipeline.evaluation.views import Encoder
from archipelago.pipeline.fitting import (
    Looked,
    fitted_of,
    group_of,
    looked_at,
    note_training,
    note_usage,
    probe_of,
    task_record,
)
from archipelago.pipeline.identifiers import ScoreCache
from archipelago.pipeline.identifiers.describer import Describer
from archipelago.pipeline.learned.state import State, build_state
from archipelago.pipeline.methods import Fitted, Neighbour, StageData
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.records import GroupRecord, TaskRecord
from archipelago.pipeline.records.evaluation import read_evaluation
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder
from archipelago.pipeline.streams import ImageTable, PreparedDomain, stratified_fold
from archipelago.pipeline.training.launch import Trainer
from archipelago.pipeline.training.spec import StageSpec

log = logging.getLogger(__name__)


class Learner:
    """One method on one run folder.

    Args:
        run: the run folder, locked by the caller.
        settings: the run's settings.
        domains: decoded tasks in stream order.
        encoder: computes features and statistics.
        basis: of compact features.
        scale: `exp(logit_scale)` of the backbone.
        kernels: attention kernel and precision of the whole run.
        score_cache: asks a multimodal model, for identifiers that need one.
        shared: run whose stored test features are reused.
        threads: of torch, for training in this process.
        trainer: of stages; None = one in this process, or with workers until this learner ends.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        basis: Basis,
        scale: float,
        kernels: Kernels,
        score_cache: ScoreCache | None = None,
        shared: RunFolder | None = None,
        threads: int = 0,
        trainer: Trainer | None = None,
    ) -> None:
        self.run = run
        self.settings = settings
        self.domains = list(domains)
        self.encoder = encoder
        self.basis = basis
        self.scale = scale
        self.kernels = kernels
        self.score_cache = score_cache
        self.threads = threads
        self.stages = stages_of(settings, [domain.name for domain in domains])
        self.evaluator = Evaluator(
            run, settings, domains, encoder, basis.width, shared, self.stages
        )
        self.groups: dict[int, GroupRecord] = {}
        self.state = self._state()
        self.method = self.state.method
        self._done: dict[int, GroupRef] = {}
        self._trainer = trainer or Trainer()
        self._describer = Describer(self.state.identifier, settings)
        self._looked: dict[int, Looked] = {}  # at stages to come

    def _state(self, *more: GroupRecord) -> State:
        """The state of what is learned so far, and of these groups."""
        return build_state(
            [*self.groups.values(), *more],
            self.settings,
            self.basis,
            scale=self.scale,
            score_cache=self.score_cache,
        )

    # -- where we are ------------------------------------------------------------------------

    def restore(self) -> list[int]:
        """Take up finished stages; returns the stages still to be learned or measured.

        A stage is measured with the records of its own time. So from the first stage on that lacks
        a measurement (all do when a task was appended), `learn` takes up each stored one in turn.
        """
        self._done = self.run.completed_stages() if self.method.learns else {}
        forgotten = self.run.forgotten()
        stages = [each.number for each in self.stages if not forgotten.issuperset(each.tasks)]
        for position, stage in enumerate(stages):
            ready = self._finished(stage) or not self.method.learns
            if not ready or not self._measured(stage):
                if self.method.trains and not all(self._finished(s) for s in stages[position:]):
                    self._trainer.start(self.settings.cluster, self.run.uri)
                return stages[position:]
            self.learn(stage)
        return []

    def _finished(self, stage: int) -> bool:
        """Whether a stage is learned, and refined where the method refines."""
        return stage in self._done and (not self.method.refines or stage in self._refined())

    def _refined(self) -> set[int]:
        """Stages whose newest record is a refined one."""
        last = {e["stage"]: e["event"] for e in self.run.journal.events() if "sha256" in e}
        return {stage for stage, event in last.items() if event in ("refined", "remixed")}

    def _measured(self, stage: int) -> bool:
        record = read_evaluation(self.run.folder, stage)
        return record is not None and record["tasks"] == [d.name for d in self.domains]

    def _admit(self, record: GroupRecord) -> None:
        """A stage is learned: its functions may answer from now on."""
        assert record.ref is not None
        self.groups[record.stage] = record
        self.encoder.install([record.ref])
        self.state = self._state()
        self.method = self.state.method
        self.evaluator.know(self.state)
        if self.state.identifier is not None:
            self._describer.identifier = self.state.identifier

    # -- one stage ---------------------------------------------------------------------------

    def learn(self, stage: int) -> None:
        """Learn a stage or take up its stored record; afterwards it is frozen for ever."""
        if not self.method.learns:
            return
        if stage in self._done:
            self._admit(GroupRecord.read(self.run, self._done[stage]))
            if self._finished(stage):
                self._drop_checkpoints(stage)  # of a driver that was killed when it was done
            self._train_next(stage)
            return
        if self.method.independent:
            self._train_ahead(stage)
        name, domains, journal = self.stages[stage].name, self._domains(stage), self.run.journal
        attempt = self._attempt(stage, "stage-started")
        journal.append("stage-started", stage=stage, task=name, attempt=attempt)
        looked = self._looked.pop(stage, None) or self._looks(stage)
        records, clock = looked.records, time.perf_counter() - looked.seconds
        if self._identified(domains[0]):
            coming = self._domains(stage + 1) if stage + 1 < len(self.stages) else []
            self._describer.begin(*domains, *coming)
        fit = time.perf_counter()
        data = self._stage_data(stage, attempt, records)
        fitted = self.method.fit(data, list(self.groups.values()))
        fit = time.perf_counter() - fit
        note_training(self.run, stage, name, attempt, fitted, looked)
        record = self._record(stage, records, fitted).write(self.run.groups, replace=True)
        self._publish(
            "stage-done",
            record,
            {
                **fitted.facts.get("seconds", {}),
                "look": looked.seconds,
                "fit": fit,
                "stage": time.perf_counter() - clock,
            },
        )
        if not self.method.refines:
            self._drop_checkpoints(stage)
        self._train_next(stage)

    def refine(self, stage: int) -> bool:
        """Fit a stage better, once it answers; returns whether there is a new record to publish."""
        if not self.method.refines or stage in self._refined():
            return False
        clock, group = time.perf_counter(), self.groups[stage]
        others = [other for other in self.groups.values() if other is not group]
        attempt = self._attempt(stage, "stage-refining")
        self.run.journal.append("stage-refining", stage=stage, task=group.name, attempt=attempt)
        data = self._stage_data(stage, attempt, group.tasks)
        fitted = self.method.refine(data, others)
        fit = time.perf_counter() - clock
        note_training(self.run, stage, group.name, attempt, fitted)
        record = replace(
            group,
            tasks=tuple(replace(t, **fitted.tasks.get(t.name, {})) for t in group.tasks),
            tensors=fitted.tensors,
            parameters=fitted.parameters,
            experts=fitted.experts,
        )
        record = record.write(self.run.groups, beside=True)
        seconds = {**fitted.facts.get("seconds", {}), "fit": fit}
        self._publish("refined", record, seconds)
        self._drop_checkpoints(stage)
        return True

    def _attempt(self, stage: int, begun: str | None = None) -> int:
        """Number of the next attempt to train a stage, by the events that begin one."""
        begun = begun or ("stage-refining" if self.method.refines else "stage-started")
        events = self.run.journal.events()
        return 1 + sum(e["event"] == begun and e["stage"] == stage for e in events)

    def _stage_data(self, stage: int, attempt: int, records: Sequence[TaskRecord]) -> StageData:
        domains = {domain.name: domain for domain in self._domains(stage)}

        def look(task: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            table = domains[task].tables["train"]
            compact, frozen = self.encoder.look(table, rows)
            return compact, frozen, ImageTable.open(table).labels[rows]

        return StageData(
            stage,
            self.stages[stage].name,
            tuple(records),
            lambda: self._trained(stage, attempt, records),
            look,
        )

    def _publish(self, event: str, record: GroupRecord, seconds: dict[str, float]) -> None:
        """Answer with a stored record from now on, and say so."""
        assert record.ref is not None
        self._admit(record)
        # An earlier stage that is learned anew leaves the later ones in the model.
        groups = self.groups.values()
        refs = self._done | {group.stage: group.ref for group in groups if group.ref is not None}
        self.run.journal.append(
            event,
            stage=record.stage,
            task=record.name,
            sha256=record.ref.sha256,
            manifest=self.run.models.publish(refs.values(), again=True),
            seconds=seconds,
        )

    def _identified(self, domain: PreparedDomain) -> bool:
        """Whether images must be identified as of this task; dense tasks share their images."""
        return self.method.identifies() and domain.kind is None

    def _domains(self, stage: int) -> list[PreparedDomain]:
        known = {domain.name: domain for domain in self.domains}
        return [known[task] for task in self.stages[stage].tasks]

    def _drop_checkpoints(self, stage: int) -> None:
        self.run.folder.delete_tree(f"train/{stage:03d}-{self.stages[stage].name}")

    def evaluate(self, stage: int) -> dict[str, Any]:
        """Measure all tasks after a stage."""
        frozen = read_evaluation(self.run.folder, None)
        if frozen is None or frozen["tasks"] != list(self.evaluator.domains):
            self.evaluator.zero_shot(self.method)
        record = self.evaluator.stage(stage, self.state)
        self.run.journal.append("evaluated", stage=stage, task=self.stages[stage].name)
        return record

    # -- pieces of a stage -------------------------------------------------------------------

    def _looks(self, stage: int) -> Looked:
        """The records of a stage's tasks before anything is fitted."""
        clock = time.perf_counter()
        records = [self._look(domain) for domain in self._domains(stage)]
        return Looked(records, time.perf_counter() - clock)

    def _look(self, domain: PreparedDomain) -> TaskRecord:
        """The record of a new task before anything is fitted."""
        record = task_record(domain)
        if domain.kind is not None:
            return record
        record = replace(record, text_CF=self.encoder.texts(record.listed, None))
        if not self._identified(domain):
            return record
        held = self._held_out(domain)
        record = looked_at(record, domain, self.encoder, held)
        if not self.method.fuses:
            return record
        texts, versions = self.evaluator.texts, self.evaluator.store.versions
        curve = prequential(self.state, self.encoder, texts, versions, domain, held)
        return replace(record, lambda_accuracy=curve)

    def _trained(self, stage: int, attempt: int, records: Sequence[TaskRecord]) -> Fitted:
        """Train the method's adapter on the stage's images."""
        spec = self._spec(stage, attempt, records)
        if self.method.independent:
            self._trainer.ahead(spec)
            self._train_ahead(stage + 1)
        return fitted_of(self._trainer(spec), self.stages[stage].tasks)

    def _spec(
        self, stage: int, attempt: int, records: Sequence[TaskRecord] | None = None
    ) -> StageSpec:
        """A stage as workers take it; without records where it needs nothing of other stages."""
        earlier: Sequence[GroupRecord] = ()
        neighbours: tuple[Neighbour, ...] = ()
        if records is not None:
            earlier, neighbours = needed(records, self.state, self.basis, self.groups.values())
        return StageSpec(
            self.settings,
            self.run.uri,
            self.kernels,
            stage,
            tuple(self._domains(stage)),
            tuple(group.ref for group in earlier if group.ref is not None),
            neighbours,
            attempt,
            self.threads,
        )

    def _train_ahead(self, stage: int) -> None:
        """Let workers train stages from this one on while others are looked at and measured."""
        wanting = (each.number for each in self.stages[stage:] if self._wants(each.number))
        for later in itertools.islice(wanting, self.settings.cluster.train.lanes):
            self._trainer.ahead(self._spec(later, self._attempt(later)))

    def _train_next(self, stage: int) -> None:
        """Let workers train the next stage while this one is measured: what it needs is stored."""
        forgotten, method = self.run.forgotten(), self.method
        later = (each for each in self.stages[stage + 1 :] if not forgotten.issuperset(each.tasks))
        coming = next(later, None)
        if method.trains and not method.independent and coming and self._wants(coming.number):
            number = coming.number
            looked = self._looked[number] = self._looks(number)
            self._trainer.ahead(self._spec(number, self._attempt(number), looked.records))

    def _wants(self, stage: int) -> bool:
        """Whether a stage is still to be trained, and has images to judge that by."""
        if self.run.forgotten().issuperset(self.stages[stage].tasks) or self._finished(stage):
            return False
        return all(d.kind is not None or len(self._held_out(d)) for d in self._domains(stage))

    def _held_out(self, domain: PreparedDomain) -> np.ndarray:
        table, settings = ImageTable.open(domain.tables["train"]), self.settings
        return stratified_fold(
            table.labels, settings.stream.held_out, settings.seed, domain.name, table.groups
        )[1]

    def _record(self, stage: int, records: Sequence[TaskRecord], fitted: Fitted) -> GroupRecord:
        """The finished record of a stage: what was seen, fitted, described and noted."""
        tasks, domains = [], self._domains(stage)
        for record, domain in zip(records, domains, strict=True):
            done = replace(record, **fitted.tasks.get(domain.name, {}))
            if self._identified(domain):
                described = self._describer.description(domain)
                done = replace(done, description=described.asdict() if described else None)
            tasks.append(done)
        group = group_of(
            stage, self.stages[stage].name, self.method.name, tasks, fitted, self.groups.values()
        )
        finished = [
            self._completed(group, task, domain)
            for task, domain in zip(group.tasks, domains, strict=True)
        ]
        return group.with_tasks(finished)

    def _completed(
        self, group: GroupRecord, record: TaskRecord, domain: PreparedDomain
    ) -> TaskRecord:
        """What can only be noted once the task is known: studies and the canary's yardstick."""
        if record.kind is not None:
            return record
        needs_probe = record.probe is None
        multimodal = self.state.identifier is not None and self.state.identifier.asks_model()
        if not needs_probe and not multimodal:
            return record
        state = self._state(group)
        table = ImageTable.open(domain.tables["train"])
        if multimodal and state.identifier is not None and record.rows:
            seen = image_source(table, domain.digests["train"], domain.name, record.rows.places)
            study = state.identifier.study(record, seen)
            note_usage(self.run, group.stage, record, state.identifier.score_cache)
            record = replace(record, study=study)
        if needs_probe:
            probe = probe_of(state, self.encoder, self.evaluator.texts, record, domain)
            record = replace(record, probe=probe)
        return record
