"""All tasks after every stage, seen and unseen, with the identifier's ids and with oracle ids.

Test images are never split over workers in ways that drop rows, and every count is asserted.
Shapes: n test images of a task, C its classes, M groups asked for an unseen image.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.dense import build
from pipeline.evaluation.logits import LogitStore, list_digest
from pipeline.evaluation.metrics import auroc, expected_calibration_error
from pipeline.identifiers import Evidence, Identification, Identifier, Shown
from pipeline.identifiers.oracle import certain
from pipeline.methods.base import Method
from pipeline.model.fusion import fuse, likeliest, softmax, unseen_weight
from pipeline.settings import Settings
from pipeline.store import GroupRef, RunFolder
from pipeline.store.tensors import dump, load
from pipeline.streams import DenseTable, ImageTable, PreparedDomain, Stage, plan_stages

log = logging.getLogger(__name__)

LAMBDAS = np.linspace(0.0, 1.0, 21)


class Encoder(Protocol):
    """An `Engine`, or a pool of them."""

    def install(self, refs: Sequence[GroupRef]) -> None:
        """See `Engine.install`."""

    def features(self, table: str, rows: np.ndarray) -> np.ndarray:
        """See `Engine.features`."""
        ...

    def logits(
        self,
        table: str,
        rows: np.ndarray,
        function: str | None,
        classes: Sequence[str],
        templates: Sequence[str],
    ) -> np.ndarray:
        """See `Engine.logits`."""
        ...

    def dense(
        self, table: str, rows: np.ndarray, task: str, kind: str, classes: int
    ) -> dict[str, np.ndarray]:
        """See `Engine.dense`."""
        ...


@dataclass(frozen=True)
class TaskFacts:
    """What evaluation needs to know of a learned task; `task` is not the group's name where a
    stage held several."""

    ref: GroupRef
    temperature: float
    lambda_accuracy: list[float] | None
    task: str


class Evaluator:
    """Turns identifications and stored logits into rows of the accuracy matrix.

    Args:
        run: the run folder.
        settings: the run's settings.
        method: class of the method; says which function answers.
        domains: all tasks in stream order.
        encoder: computes features and logits that are not stored yet.
        identifier: recognises tasks.
        shared: run whose stored features and logits are used and added to; default `run`.
        stages: which tasks are learned together; default one a stage.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        method: type[Method],
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        identifier: Identifier,
        shared: RunFolder | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        self.stages = list(stages or plan_stages([domain.name for domain in domains]))
        self.run = run
        self.settings = settings
        self.method = method
        self.domains = {domain.name: domain for domain in domains}
        self.encoder = encoder
        self.identifier = identifier
        self._shared = shared or run
        self.logits = LogitStore(self._shared, {})
        self.facts: dict[str, TaskFacts] = {}
        self.classified = [domain.name for domain in domains if domain.kind is None]
        self._tables = {d.name: ImageTable.open(d.tables["test"]) for d in domains}
        self._features: dict[str, np.ndarray] = {}

    def learned(self, facts: TaskFacts) -> None:
        """A task is learned: its function may answer from now on."""
        self.facts[facts.task] = facts
        self.logits.hashes[facts.task] = facts.ref.sha256
        self.encoder.install([facts.ref])

    # -- pieces ------------------------------------------------------------------------------

    def features(self, task: str) -> np.ndarray:
        """Signature features of a task's test images, stored with the run."""
        if task not in self._features:
            folder = self._shared.folder.child("evaluation/features")
            domain = self.domains[task]
            name = f"{task}-{domain.digests['test'][:16]}-{self.settings.identifier.depths}"
            name += ".safetensors"
            count = len(self._tables[task])
            if folder.exists(name):
                found = load(folder.read(name), name)["features"].numpy()
            else:
                found = self.encoder.features(domain.tables["test"], np.arange(count))
                folder.write(name, dump({"features": found}))
            if len(found) != count:
                raise RuntimeError(f"{task}: {count} test images, features of {len(found)}")
            self._features[task] = found
        return self._features[task]

    def evidence(self, task: str) -> Evidence:
        """A task's test images, as an identifier may see them."""
        table, digest = self._tables[task], self.domains[task].digests["test"]
        return Evidence(
            self.features(task), task, shown(table, digest, task, np.arange(len(table)))
        )

    def _logits(self, task: str, function: str | None, rows: np.ndarray) -> np.ndarray:
        domain = self.domains[task]
        digest = list_digest(domain.digests["test"], domain.classes, domain.templates)

        def compute(missing: np.ndarray) -> np.ndarray:
            return self.encoder.logits(
                domain.tables["test"], missing, function, domain.classes, domain.templates
            )

        shape = (len(self._tables[task]), len(domain.classes))
        return self.logits.get(task, digest, function, rows, shape, compute)

    @property
    def lambda_max(self) -> float:
        """Largest weight of the groups for unseen images, from prequential accuracies only."""
        curves = [f.lambda_accuracy for f in self.facts.values()]
        return largest_lambda(self.settings.method.unseen.lambda_max, curves)

    def weight(self) -> float:
        """`lam_t` of the current number of learned tasks."""
        if not self.method.fuses:
            return 0.0
        unseen = self.settings.method.unseen
        return unseen_weight(len(self.facts), self.lambda_max, unseen.lambda_steps)

    # -- one task ----------------------------------------------------------------------------

    def correct(self, task: str, found: Identification) -> np.ndarray:
        """Which test images of a task are classified correctly, (n,) bool.

        Images that the identifier gives to a task are answered by that task's function; the
        others by frozen CLIP, fused with the likeliest groups where the method does so.
        """
        labels = self._tables[task].labels
        learned = list(found.options)
        answered = np.full(len(labels), -1, dtype=np.int64)
        for option in np.unique(found.chosen):
            rows = np.flatnonzero(found.chosen == option)
            name = learned[option] if option >= 0 else None
            function = self._function(name, learned)
            if option >= 0 or not self.method.fuses or self.weight() == 0.0:
                answered[rows] = self._logits(task, function, rows).argmax(axis=1)
            else:
                answered[rows] = self._fused(task, rows, found).argmax(axis=1)
        if (answered < 0).any():
            raise RuntimeError(f"{task}: {(answered < 0).sum()} test images were not answered")
        return answered == labels

    def _function(self, task: str | None, learned: Sequence[str]) -> str | None:
        return self.method.function(task, learned)

    def _fused(self, task: str, rows: np.ndarray, found: Identification) -> np.ndarray:
        frozen = softmax(self._logits(task, None, rows))
        asked, shares = likeliest(found.shares[rows], self.settings.method.unseen.groups)
        groups = np.zeros((len(rows), asked.shape[1], frozen.shape[1]))
        for option in np.unique(asked):
            name = found.options[option]
            at, column = np.nonzero(asked == option)
            scores = self._logits(task, name, rows[at])
            groups[at, column] = softmax(scores, self.facts[name].temperature)
        return fuse(frozen, groups, shares, self.weight())

    def dense(self, task: str) -> dict[str, dict[str, Any]]:
        """Figures of a learned dense task, its own first; the task is given, as it must be."""
        domain = self.domains[task]
        assert domain.kind is not None
        table, metric = domain.tables["test"], build(domain.kind, len(domain.classes)).metric()
        rows = np.flatnonzero(DenseTable.open(table).usable(task))
        metric.merge(self.encoder.dense(table, rows, task, domain.kind, len(domain.classes)))
        return {
            name: {**asdict(score), "value": None if np.isnan(score.value) else score.value}
            for name, score in metric.values().items()
        }

    # -- whole stages ------------------------------------------------------------------------

    def zero_shot(self) -> list[float | None]:
        """Accuracy of frozen CLIP on every task, percent; stored once. None for dense tasks."""
        correct = {}
        for task in self.classified:
            table = self._tables[task]
            rows = np.arange(len(table))
            right = self._logits(task, None, rows).argmax(axis=1) == table.labels
            correct[task] = right.astype(np.uint8)
        accuracy = [_percent(correct.get(task)) for task in self.domains]
        self.run.folder.write("evaluation/zero-shot.safetensors", dump(correct))
        facts = {"tasks": list(self.domains), "accuracy": accuracy}
        self.run.folder.write_json("evaluation/zero-shot.json", facts)
        return accuracy

    def stage(self, stage: int) -> dict[str, Any]:
        """Measure all tasks after a stage and store the record."""
        clock = time.perf_counter()
        so_far = [task for each in self.stages[: stage + 1] for task in each.tasks]
        learned = list(self.facts) if self.method.trains else so_far
        right: dict[str, np.ndarray] = {}
        found: dict[str, Identification] = {}
        for task in self.classified:
            truth = certain(task, learned, len(self._tables[task]))
            right[f"oracle/{task}"] = self.correct(task, truth)
            if not self.method.identifies:
                found[task] = truth
            else:
                found[task] = self.identifier.identify(self.evidence(task))
            right[f"identified/{task}"] = self.correct(task, found[task])
        dense = {task: self.dense(task) for task in learned if task not in self.classified}
        record = {
            "stage": stage,
            "task": self.stages[stage].name,
            "tasks": list(self.domains),
            "accuracy": {
                kind: [_percent(right.get(f"{kind}/{task}")) for task in self.domains]
                for kind in ("identified", "oracle")
            },
            "metrics": dense,
            "own": {task: next(iter(figures)) for task, figures in dense.items()},
            "images": [len(table) for table in self._tables.values()],
            "identifier": self._identifier_record(found, learned),
            "work": self._work(stage),
            "lambda": self.weight(),
            "threshold": self.identifier.threshold if self.method.fuses else None,
            "seconds": time.perf_counter() - clock,
        }
        name = f"evaluation/{stage:03d}"
        self.run.folder.write(
            f"{name}.safetensors", dump({k: v.astype(np.uint8) for k, v in right.items()})
        )
        self.run.folder.write_json(f"{name}.json", record)
        return record

    def _identifier_record(
        self, found: dict[str, Identification], learned: list[str]
    ) -> dict[str, Any] | None:
        if not self.method.identifies or not self.classified:
            return None
        options = len(learned)
        confusion = [
            np.bincount(np.where(f.chosen < 0, options, f.chosen), minlength=options + 1).tolist()
            for f in found.values()
        ]
        closed = np.array([np.bincount(found[task].closed, minlength=options) for task in learned])
        own = [(found[t].chosen == i).mean() for i, t in enumerate(learned)]
        accepted = [(found[t].chosen >= 0).mean() for t in learned]
        seen = np.concatenate([found[t].unseen_score for t in learned])
        fresh = [found[t].unseen_score for t in self.domains if t not in learned]
        return {
            "options": [*learned, "none"],
            "confusion": confusion,
            "closed_confusion": closed.tolist(),
            "seen_acceptance": 100.0 * float(np.mean(accepted)),
            "unseen_auroc": 100.0 * auroc(np.concatenate(fresh), seen) if fresh else None,
            "closed_accuracy": 100.0 * float(np.mean(np.diag(closed) / closed.sum(axis=1))),
            "accuracy": 100.0 * float(np.mean(own)),
            "calibration_error": 100.0 * _calibration_error(found, learned),
        }

    def _work(self, stage: int) -> dict[str, Any] | None:
        """What was asked of the multimodal model, with a few calls in full in a file of its own."""
        looker = self.identifier.looker
        if looker is None or not self.method.identifies:
            return None
        work, traces = looker.take_work()
        if traces:
            self.run.folder.write_json(f"identifier/traces/{stage:03d}-test.json", traces)
        return work.asdict()

    # -- before a stage ----------------------------------------------------------------------

    def prequential(
        self, domain: PreparedDomain, held: np.ndarray, evidence: Evidence
    ) -> list[float] | None:
        """Accuracy for every lambda on a new task's held-out fold, genuinely unseen as yet.

        Args:
            domain: the task about to be learned.
            held: rows of its held-out fold.
            evidence: these images, as an identifier may see them.

        Returns:
            Percent per value of `LAMBDAS`, or None before anything was learned.
        """
        if not self.facts or not self.method.fuses:
            return None
        table = domain.tables["train"]
        labels = ImageTable.open(table).labels[held]
        found = self.identifier.identify(evidence)
        asked, shares = likeliest(found.shares, self.settings.method.unseen.groups)
        lists = (domain.classes, domain.templates)
        frozen = softmax(self.encoder.logits(table, held, None, *lists))
        groups = np.zeros((len(held), asked.shape[1], frozen.shape[1]))
        for option in np.unique(asked):
            name = found.options[option]
            at, column = np.nonzero(asked == option)
            scores = self.encoder.logits(table, held[at], name, *lists)
            groups[at, column] = softmax(scores, self.facts[name].temperature)
        return [
            100.0 * float((fuse(frozen, groups, shares, lam).argmax(axis=1) == labels).mean())
            for lam in LAMBDAS
        ]


def shown(table: ImageTable, digest: str, label: str, rows: np.ndarray) -> Shown:
    """Some images of a table, to be looked at.

    Args:
        table: decoded images.
        digest: of the content of their split.
        label: their task, for traces.
        rows: which images.
    """
    key = hashlib.sha256(f"{digest}\n{table.size}\n{len(table)}".encode()).hexdigest()
    return Shown(lambda at: table.images(rows[at]), key, rows, len(table), label)


def _percent(right: np.ndarray | None) -> float | None:
    return None if right is None else 100.0 * float(right.mean())


def _calibration_error(found: dict[str, Identification], learned: Sequence[str]) -> float:
    """How far the stated confidence is from how often the likeliest option is right."""
    sure, right = [], []
    for task, identification in found.items():
        truth = learned.index(task) if task in learned else len(learned)
        sure.append(identification.probabilities.max(axis=1))
        right.append(identification.probabilities.argmax(axis=1) == truth)
    return expected_calibration_error(np.concatenate(sure), np.concatenate(right))


def largest_lambda(fixed: float | str, curves: Sequence[list[float] | None]) -> float:
    """`lam_max`: the configured one, or for `auto` the best on average over the tasks' curves.

    Args:
        fixed: `method.unseen.lambda_max`.
        curves: per task, accuracy for every value of `LAMBDAS`; None where nothing was learned yet.
    """
    if fixed != "auto":
        return float(fixed)
    known = [np.asarray(curve) for curve in curves if curve]
    if not known:
        return 0.0
    gain = np.mean([curve - curve[0] for curve in known], axis=0)
    return float(LAMBDAS[int(np.argmax(gain - 1e-9 * np.arange(len(gain))))])
