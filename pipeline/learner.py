"""Learn a stream stage by stage: what happens to one task from its first image to its record.

A stage: look at the new images with the model as it was, train a group, freeze and store it,
teach the identifier, publish a manifest, measure everything.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.evaluator import Encoder, Evaluator, TaskFacts, shown
from pipeline.identifiers import Description, Evidence, Identifier, Signature, Study
from pipeline.identifiers.describer import Describer
from pipeline.identifiers.signature import Background, task_distance
from pipeline.methods.base import Neighbour, method_class
from pipeline.model.kernels import Kernels
from pipeline.settings import Settings
from pipeline.store import GroupRef, RunFolder
from pipeline.store.tensors import dump, load
from pipeline.streams import ImageTable, PreparedDomain, Stage, plan_stages, stratified_fold
from pipeline.streams.card import data_card
from pipeline.training.launch import train_stage
from pipeline.training.stage import GROUP, PROBE, Outcome, StageSpec

log = logging.getLogger(__name__)

IDENTITY, TASK, EXPERTS = "identity.safetensors", "task.json", "experts.json"


class Look(NamedTuple):
    """What is seen of a new task before it is learned.

    Attributes:
        signature: statistics of its training fold; None where the method needs no identity.
        held_out: its held-out fold, features (n, S) and images.
        lambdas: accuracy of the model as it was on that fold, for every lambda.
    """

    signature: Signature | None
    held_out: Evidence
    lambdas: list[float] | None


NOTHING_SEEN = Look(None, Evidence(np.zeros((0, 0))), None)


class Learner:
    """One method on one run folder.

    Args:
        run: the run folder, locked by the caller.
        settings: the run's settings.
        domains: decoded tasks in stream order.
        encoder: computes features and logits.
        identifier: recognises tasks; empty.
        background: what signatures are compared against.
        kernels: attention kernel and precision of the whole run.
        shared: run whose stored test features and logits are reused.
        train: runs a stage; `pipeline.training.launch.train_stage` unless a test says otherwise.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        identifier: Identifier,
        background: Background,
        kernels: Kernels,
        shared: RunFolder | None = None,
        threads: int = 0,
        train: Callable[[StageSpec], Outcome] = train_stage,
    ) -> None:
        self.run = run
        self.settings = settings
        self.domains = list(domains)
        self.encoder = encoder
        self.identifier = identifier
        self.background = background
        self.kernels = kernels
        self.threads = threads
        self.method = method_class(settings.method.name)
        self.stages = stages_of(settings, [domain.name for domain in domains])
        self.evaluator = Evaluator(
            run, settings, self.method, domains, encoder, identifier, shared, self.stages
        )
        self.signatures: dict[str, Signature] = {}
        self._done: dict[int, GroupRef] = {}
        self._train = train
        self._describer = Describer(identifier, settings)

    # -- where we are ------------------------------------------------------------------------

    def restore(self) -> list[int]:
        """Take up finished stages; returns the stages still to be learned or measured.

        A stage is measured with the groups of its own time. So from the first stage on that lacks
        a measurement (all do when a task was appended), `learn` takes up each stored group in turn.
        """
        self._done = self.run.completed_stages() if self.method.trains else {}
        forgotten = self.run.forgotten()
        stages = [each.number for each in self.stages if not forgotten.issuperset(each.tasks)]
        for position, stage in enumerate(stages):
            ready = stage in self._done or not self.method.trains
            if not ready or not self._measured(stage):
                return stages[position:]
            self.learn(stage)
        return []

    def _measured(self, stage: int) -> bool:
        name = f"evaluation/{stage:03d}.json"
        if not self.run.folder.exists(name):
            return False
        return self.run.folder.read_json(name)["tasks"] == [d.name for d in self.domains]

    def _recall(self, ref: GroupRef) -> None:
        card = json.loads(self.run.groups.read(ref, TASK))
        arrays = load(self.run.groups.read(ref, IDENTITY), IDENTITY)
        for task in self.stages[ref.stage].tasks:
            alone = task == ref.name
            prefix = "signature/" if alone else f"signature/{task}/"
            calibration = card["calibration"] if alone else card["calibration"][task]
            description = card["description"] if alone else card["description"][task]
            stored = {
                k.removeprefix(prefix): v.numpy() for k, v in arrays.items() if k.startswith(prefix)
            }
            self._admit(ref, task, calibration)
            if stored:
                self.signatures[task] = Signature.load(stored)
                self.identifier.restore(
                    task, self.signatures[task], calibration["identifier"],
                    Description.load(description),
                )  # fmt: skip

    def _admit(self, ref: GroupRef, task: str, calibration: dict[str, Any]) -> None:
        self.evaluator.learned(
            TaskFacts(ref, calibration["temperature"], calibration["lambda_accuracy"], task)
        )

    # -- one stage ---------------------------------------------------------------------------

    def learn(self, stage: int) -> None:
        """Learn a stage or take up its stored group; afterwards it is frozen for ever."""
        name, domains = self.stages[stage].name, self._domains(stage)
        if not self.method.trains:
            return
        if stage in self._done:
            self._recall(self._done[stage])
            self._drop_checkpoints(stage)  # of a driver that was killed when the stage was done
            return
        journal = self.run.journal
        events = journal.events()
        attempt = 1 + sum(e["event"] == "stage-started" and e["stage"] == stage for e in events)
        journal.append("stage-started", stage=stage, task=name, attempt=attempt)
        clock = time.perf_counter()
        looks = [self._look(d) if self._identified(d) else NOTHING_SEEN for d in domains]
        looked = time.perf_counter() - clock
        if self._identified(domains[0]):
            coming = self._domains(stage + 1) if stage + 1 < len(self.stages) else []
            self._describer.begin(*domains, *coming)
        fit = time.perf_counter()
        outcome = self._train(self._spec(stage, attempt, [look.signature for look in looks]))
        fit = time.perf_counter() - fit
        facts = outcome.facts
        journal.append(
            "stage-trained",
            stage=stage,
            task=name,
            attempt=attempt,
            steps=facts["best_step"],
            images_per_second=facts["images_per_second"],
            loss=facts["loss"],
            held_out_accuracy=facts["held_out_accuracy"],
            held_out_loss=facts["held_out_loss"],
            curve=facts["curve"],
            seconds={
                "look": looked,
                "trunk": facts["seconds"]["trunk"],
                "steps": facts["seconds"]["steps"],
            },
        )
        calibrations: dict[str, dict[str, Any]] = {}
        descriptions: dict[str, Description | None] = {}
        for domain, (signature, held, lambdas) in zip(domains, looks, strict=True):
            calibration = {
                "temperature": facts["temperatures"][domain.name],
                "lambda_accuracy": lambdas,
                "identifier": None,
            }
            description = None
            if signature is not None:
                self.signatures[domain.name] = signature
                description = self._describer.description(domain)
                calibration["identifier"] = self.identifier.learn(
                    domain.name, signature, held.features, Study(held, description)
                )
                self._note_work(stage, domain.name, description)
            calibrations[domain.name] = calibration
            descriptions[domain.name] = description
        signatures = [look.signature for look in looks]
        ref = self._store(stage, outcome, signatures, calibrations, descriptions)
        for domain in domains:
            self._admit(ref, domain.name, calibrations[domain.name])
        manifest = self.run.models.publish(self._learned())
        journal.append(
            "stage-done",
            stage=stage,
            task=name,
            sha256=ref.sha256,
            manifest=manifest,
            seconds={**facts["seconds"], "fit": fit, "stage": time.perf_counter() - clock},
        )
        self._drop_checkpoints(stage)

    def _identified(self, domain: PreparedDomain) -> bool:
        """Whether images must be identified as of this task; dense tasks share their images."""
        return self.method.identifies and domain.kind is None

    def _domains(self, stage: int) -> list[PreparedDomain]:
        known = {domain.name: domain for domain in self.domains}
        return [known[task] for task in self.stages[stage].tasks]

    def _drop_checkpoints(self, stage: int) -> None:
        self.run.folder.delete_tree(f"train/{stage:03d}-{self.stages[stage].name}")

    def evaluate(self, stage: int) -> dict[str, Any]:
        """Measure all tasks after a stage."""
        folder, name = self.run.folder, "evaluation/zero-shot.json"
        if not folder.exists(name) or folder.read_json(name)["tasks"] != list(
            self.evaluator.domains
        ):
            self.evaluator.zero_shot()
        record = self.evaluator.stage(stage)
        self.run.journal.append("evaluated", stage=stage, task=self.stages[stage].name)
        return record

    def _look(self, domain: PreparedDomain) -> Look:
        """Look at a new task with the model as it was."""
        table = ImageTable.open(domain.tables["train"])
        rows, held = stratified_fold(
            table.labels, self.settings.stream.held_out, self.settings.seed, domain.name
        )
        features = self.encoder.features(domain.tables["train"], np.concatenate([rows, held]))
        if len(features) != len(rows) + len(held):
            raise RuntimeError(f"{domain.name}: features of {len(features)} training images only")
        mine = features[: len(rows)]
        signature = self.identifier.prepare(Signature.of(mine, table.labels[rows]), mine)
        seen = shown(table, domain.digests["train"], domain.name, held)
        theirs = Evidence(features[len(rows) :], domain.name, seen)
        return Look(signature, theirs, self.evaluator.prequential(domain, held, theirs))

    def _note_work(self, stage: int, task: str, description: Description | None) -> None:
        """Journal what the multimodal model did for this stage; nothing where there is none."""
        looker = self.identifier.looker
        if looker is None or description is None:
            return
        work, traces = looker.take_work()
        if traces:
            self.run.folder.write_json(f"identifier/traces/{stage:03d}-{task}.json", traces)
        self.run.journal.append(
            "described", stage=stage, task=task, text=description.text, by=description.by,
            model=description.model, work=work.asdict(),
        )  # fmt: skip

    def _spec(self, stage: int, attempt: int, signatures: Sequence[Signature | None]) -> StageSpec:
        """What the stage's worker is told. Tasks of one stage help each other by their experts, so
        only a task that is alone in its stage borrows from earlier ones."""
        only = signatures[0] if len(signatures) == 1 else None
        neighbours = () if only is None else self._neighbours(only)
        learned = self._learned()
        if self.method.borrows:
            earlier = self._with_lenders({neighbour.task for neighbour in neighbours}, learned)
        else:
            earlier = learned[-1:]
        return StageSpec(
            self.settings, self.run.uri, self.kernels, stage, tuple(self._domains(stage)),
            tuple(earlier), neighbours, attempt, self.threads,
        )  # fmt: skip

    def _with_lenders(self, wanted: set[str], learned: list[GroupRef]) -> list[GroupRef]:
        """The wanted groups and those that they borrow from, by stage."""
        found = []
        for ref in reversed(learned):  # a group borrows from earlier ones only
            if wanted.intersection(self.stages[ref.stage].tasks):
                found.append(ref)
                card = json.loads(self.run.groups.read(ref, TASK))
                wanted = wanted | {neighbour["task"] for neighbour in card["neighbours"]}
        return found[::-1]

    def _neighbours(self, signature: Signature) -> tuple[Neighbour, ...]:
        """The at most m nearest earlier tasks within reach (method 2.6)."""
        if not self.method.borrows:
            return ()
        rule, shrinkage = self.settings.method.neighbours, self.settings.identifier.shrinkage
        found = [
            Neighbour(task_distance(signature, other, self.background, shrinkage), task)
            for task, other in self.signatures.items()
        ]
        near = sorted(n for n in found if n.distance <= rule.max_distance)
        return tuple(near[: rule.count])

    def _learned(self) -> list[GroupRef]:
        """The groups learned so far, one a stage."""
        return sorted(
            {facts.ref for facts in self.evaluator.facts.values()}, key=lambda ref: ref.stage
        )

    def _store(
        self,
        stage: int,
        outcome: Outcome,
        signatures: Sequence[Signature | None],
        calibrations: dict[str, dict[str, Any]],
        descriptions: dict[str, Description | None],
    ) -> GroupRef:
        domains, name = self._domains(stage), self.stages[stage].name
        identity: dict[str, Any] = {}
        several = len(domains) > 1
        for domain, signature in zip(domains, signatures, strict=True):
            ending = f"{domain.name}/" if several else ""
            arrays = {} if signature is None else signature.arrays()
            identity |= {f"signature/{ending}{k}": v for k, v in arrays.items()}
        files = {
            GROUP: dump(outcome.group),
            IDENTITY: dump({**identity, **outcome.classes}),
            PROBE: dump(outcome.probe),
        }
        learned = {task: facts.ref for task, facts in self.evaluator.facts.items()}
        before = self._learned()
        told = {task: d.asdict() if d else None for task, d in descriptions.items()}
        card = {
            "schema": 1,
            "stage": stage,
            "name": name,
            **data_card(domains),
            "method": self.method.name,
            "neighbours": [
                {
                    **n,
                    "sha256": learned[n["task"]].sha256,
                    "gain": outcome.facts["gains"][n["task"]],
                }
                for n in outcome.facts["neighbours"]
            ],
            "parameters": {
                "group": outcome.facts["parameters"],
                "identifier": sum(s.numbers() for s in signatures if s is not None),
            },
            "bytes": {
                "group": len(files[GROUP]),
                "identity": len(files[IDENTITY]),
                "probe": len(files[PROBE]),
            },
            "calibration": calibrations if several else calibrations[name],
            "description": told if several else told[name],
            "parent": before[-1].sha256 if before else None,
        }
        files[TASK] = json.dumps(card, sort_keys=True, indent=1).encode()
        if outcome.facts["experts"] is not None:
            files[EXPERTS] = json.dumps(outcome.facts["experts"], sort_keys=True).encode()
        return self.run.groups.write(stage, name, files, replace=True)


def stages_of(settings: Settings, tasks: Sequence[str]) -> list[Stage]:
    """The stages in which the settings' method learns these tasks.

    Raises:
        UserError: `stream.stages` does not hold the tasks in their order.
    """
    method = method_class(settings.method.name)
    return plan_stages(tasks, settings.stream.stages, joint=method.joint, alone=method.alone)
