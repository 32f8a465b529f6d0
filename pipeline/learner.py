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
from pipeline.streams import ImageTable, PreparedDomain, stratified_fold
from pipeline.training.launch import train_stage
from pipeline.training.stage import GROUP, PROBE, Outcome, StageSpec

log = logging.getLogger(__name__)

IDENTITY, TASK = "identity.safetensors", "task.json"


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
        self.evaluator = Evaluator(run, settings, self.method, domains, encoder, identifier, shared)
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
        for stage in range(len(self.domains)):
            ready = stage in self._done or not self.method.trains
            if not ready or not self._measured(stage):
                return list(range(stage, len(self.domains)))
            self.learn(stage)
        return []

    def _measured(self, stage: int) -> bool:
        name = f"evaluation/{stage:03d}.json"
        if not self.run.folder.exists(name):
            return False
        return self.run.folder.read_json(name)["tasks"] == [d.name for d in self.domains]

    def _recall(self, ref: GroupRef) -> None:
        task = json.loads(self.run.groups.read(ref, TASK))
        arrays = load(self.run.groups.read(ref, IDENTITY), IDENTITY)
        prefix = "signature/"
        stored = {
            k.removeprefix(prefix): v.numpy() for k, v in arrays.items() if k.startswith(prefix)
        }
        self._admit(ref, task["calibration"])
        if stored:
            self.signatures[ref.name] = Signature.load(stored)
            self.identifier.restore(
                ref.name, self.signatures[ref.name], task["calibration"]["identifier"],
                Description.load(task["description"]),
            )  # fmt: skip

    def _admit(self, ref: GroupRef, calibration: dict[str, Any]) -> None:
        self.evaluator.learned(
            TaskFacts(ref, calibration["temperature"], calibration["lambda_accuracy"])
        )

    # -- one stage ---------------------------------------------------------------------------

    def learn(self, stage: int) -> None:
        """Learn one task or take up its stored group; afterwards it is frozen for ever."""
        domain = self.domains[stage]
        if not self.method.trains:
            return
        if stage in self._done:
            self._recall(self._done[stage])
            self._drop_checkpoints(stage)  # of a driver that was killed when the stage was done
            return
        journal = self.run.journal
        events = journal.events()
        attempt = 1 + sum(e["event"] == "stage-started" and e["stage"] == stage for e in events)
        journal.append("stage-started", stage=stage, task=domain.name, attempt=attempt)
        clock = time.perf_counter()
        signature, held, lambdas = self._look(domain) if self.method.identifies else NOTHING_SEEN
        looked = time.perf_counter() - clock
        if self.method.identifies:
            self._describer.begin(domain)
            self._describer.begin(*self.domains[stage + 1 : stage + 2])
        fit = time.perf_counter()
        outcome = self._train(self._spec(stage, attempt, signature))
        fit = time.perf_counter() - fit
        facts = outcome.facts
        journal.append(
            "stage-trained",
            stage=stage,
            task=domain.name,
            attempt=attempt,
            steps=facts["best_step"],
            images_per_second=facts["images_per_second"],
            loss=facts["loss"],
            held_out_accuracy=facts["held_out_accuracy"],
            curve=facts["curve"],
            seconds={
                "look": looked,
                "trunk": facts["seconds"]["trunk"],
                "steps": facts["seconds"]["steps"],
            },
        )
        calibration = {
            "temperature": facts["temperature"],
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
        ref = self._store(stage, domain, outcome, signature, calibration, description)
        self._admit(ref, calibration)
        manifest = self.run.models.publish(self._learned())
        journal.append(
            "stage-done",
            stage=stage,
            task=domain.name,
            sha256=ref.sha256,
            manifest=manifest,
            seconds={**facts["seconds"], "fit": fit, "stage": time.perf_counter() - clock},
        )
        self._drop_checkpoints(stage)

    def _drop_checkpoints(self, stage: int) -> None:
        self.run.folder.delete_tree(f"train/{stage:03d}-{self.domains[stage].name}")

    def evaluate(self, stage: int) -> dict[str, Any]:
        """Measure all tasks after a stage."""
        folder, name = self.run.folder, "evaluation/zero-shot.json"
        if not folder.exists(name) or folder.read_json(name)["tasks"] != list(
            self.evaluator.domains
        ):
            self.evaluator.zero_shot()
        record = self.evaluator.stage(stage)
        self.run.journal.append("evaluated", stage=stage, task=self.domains[stage].name)
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
            self.run.folder.write_json(f"identifier/traces/{stage:03d}-held-out.json", traces)
        self.run.journal.append(
            "described", stage=stage, task=task, text=description.text, by=description.by,
            model=description.model, work=work.asdict(),
        )  # fmt: skip

    def _spec(self, stage: int, attempt: int, signature: Signature | None) -> StageSpec:
        neighbours = () if signature is None else self._neighbours(signature)
        learned = self._learned()
        if self.method.borrows:
            earlier = self._with_lenders({neighbour.task for neighbour in neighbours}, learned)
        else:
            earlier = learned[-1:]
        return StageSpec(
            self.settings, self.run.uri, self.kernels, stage, self.domains[stage],
            tuple(earlier), neighbours, attempt, self.threads,
        )  # fmt: skip

    def _with_lenders(self, wanted: set[str], learned: list[GroupRef]) -> list[GroupRef]:
        """The wanted groups and those that they borrow from, by stage."""
        found = []
        for ref in reversed(learned):  # a group borrows from earlier ones only
            if ref.name in wanted:
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
        order = [domain.name for domain in self.domains]
        refs = [facts.ref for facts in self.evaluator.facts.values()]
        return sorted(refs, key=lambda ref: order.index(ref.name))

    def _store(
        self,
        stage: int,
        domain: PreparedDomain,
        outcome: Outcome,
        signature: Signature | None,
        calibration: dict[str, Any],
        description: Description | None,
    ) -> GroupRef:
        arrays = {} if signature is None else signature.arrays()
        identity = {f"signature/{k}": v for k, v in arrays.items()}
        files = {
            GROUP: dump(outcome.group),
            IDENTITY: dump({**identity, "classes": outcome.classes}),
            PROBE: dump(outcome.probe),
        }
        learned = {ref.name: ref for ref in self._learned()}
        parent = self._learned()[-1].sha256 if learned else None
        card = {
            "schema": 1,
            "stage": stage,
            "name": domain.name,
            "classes": list(domain.classes),
            "templates": list(domain.templates),
            "digests": dict(domain.digests),
            "counts": dict(domain.counts),
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
                "identifier": 0 if signature is None else signature.numbers(),
            },
            "bytes": {
                "group": len(files[GROUP]),
                "identity": len(files[IDENTITY]),
                "probe": len(files[PROBE]),
            },
            "calibration": calibration,
            "description": None if description is None else description.asdict(),
            "parent": parent,
        }
        files[TASK] = json.dumps(card, sort_keys=True, indent=1).encode()
        return self.run.groups.write(stage, domain.name, files, replace=True)
