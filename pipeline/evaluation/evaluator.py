"""All tasks after every stage, seen and unseen, in all settings, from stored features.

Test images are never split over workers in ways that drop rows, and every count is asserted.
Shapes: N test images of a task, T learned tasks.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from archipelago.pipeline.dense import build
from archipelago.pipeline.evaluation.metrics import auroc, expected_calibration_error
from archipelago.pipeline.evaluation.protocol import (
    CIL,
    SETTINGS,
    TaskMeasurement,
    measure,
    stream_pairs,
    zero_shot,
)
from archipelago.pipeline.evaluation.views import Encoder, FeatureStore, SplitView
from archipelago.pipeline.identifiers import Evidence, Identification, ImageSource
from archipelago.pipeline.learned.candidates import Candidate
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.methods import Method
from archipelago.pipeline.records import class_list
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import dump
from archipelago.pipeline.streams import DenseTable, ImageTable, PreparedDomain, Stage, plan_stages
from archipelago.pipeline.streams.parts import protocol

log = logging.getLogger(__name__)


class Evaluator:
    """Turns states and stored features into rows of the accuracy matrices.

    Args:
        run: the run folder.
        settings: the run's settings.
        domains: all tasks in stream order.
        encoder: computes features that are not stored yet.
        width: K, of compact features.
        shared: run whose stored features are used and added to; default `run`.
        stages: which tasks are learned together; default one a stage.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        width: int,
        shared: RunFolder | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        self.stages = list(stages or plan_stages([domain.name for domain in domains]))
        self.run = run
        self.settings = settings
        self.domains = {domain.name: domain for domain in domains}
        self.encoder = encoder
        self.store = FeatureStore(shared or run, encoder, width, settings.identifier)
        self.texts = Texts(encoder.texts)
        self.classified = [domain for domain in domains if domain.kind is None]
        self.pairs = stream_pairs(self.classified)
        self.cut = protocol(settings.stream.options).steps is not None
        self._tables = {d.name: ImageTable.open(d.tables["test"]) for d in domains}
        self._frozen: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    # -- pieces ------------------------------------------------------------------------------

    def know(self, state: State) -> None:
        """Functions of these records may be asked for from now on."""
        self.store.versions |= state.versions
        self.texts.remember(state)

    def _read(self) -> None:
        """Encode class names domain by domain, as their records hold them."""
        for domain in self.classified:
            self.texts.get(class_list(domain.classes, domain.templates), None)

    def view(self, task: str) -> SplitView:
        """A task's test images."""
        domain, count = self.domains[task], len(self._tables[task])
        if task not in self._frozen:
            self._frozen[task] = self.store.frozen(domain, count)
        return SplitView(
            *self._frozen[task],
            lambda function, rows: self.store.get(domain, count, function, rows),
            self.texts,
            self.store.versions,
        )

    def evidence(self, task: str) -> Evidence:
        """A task's test images, as an identifier may see them."""
        table, digest = self._tables[task], self.domains[task].digests["test"]
        return Evidence(
            self.view(task).compact, task, image_source(table, digest, task, np.arange(len(table)))
        )

    def labels(self, task: str) -> np.ndarray:
        """(N,) of a task's test images."""
        return self._tables[task].labels

    def seen(self, stage: int) -> tuple[Candidate, ...]:
        """The candidates of CIL: classes of the steps up to a stage; none without steps."""
        tasks = {task for each in self.stages[: stage + 1] for task in each.tasks}
        return tuple(pair for pair in self.pairs if pair.task in tasks) if self.cut else ()

    def measured(
        self,
        state: State,
        task: str,
        found: Identification | None,
        seen: tuple[Candidate, ...] = (),
    ) -> TaskMeasurement:
        """A task's test images in all settings."""
        return measure(
            state, self.view(task), found, self.domains[task], self.labels(task), self.pairs, seen
        )

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

    def zero_shot(self, method: Method) -> list[float | None]:
        """Accuracy of frozen CLIP on every task in every setting; stored once."""
        correct: dict[str, np.ndarray] = {}
        self._read()
        for domain in self.classified:
            found = zero_shot(
                method, self.view(domain.name), domain, self.labels(domain.name), self.pairs
            )
            correct |= {f"{k}/{domain.name}": v.astype(np.uint8) for k, v in found.items()}
        self.run.folder.write("evaluation/zero-shot.safetensors", dump(correct))
        kinds = [f"{s}{d}" for s in SETTINGS for d in ("", "/debiased")]
        accuracy = {
            kind: [_percent(correct.get(f"{kind}/{task}")) for task in self.domains]
            for kind in kinds
        }
        facts = {
            "tasks": list(self.domains),
            "accuracy": accuracy["mtil_given"],
            "settings": accuracy,
        }
        self.run.folder.write_json("evaluation/zero-shot.json", facts)
        return accuracy["mtil_given"]

    def stage(self, stage: int, state: State) -> dict[str, Any]:
        """Measure all tasks after a stage and store the record."""
        clock = time.perf_counter()
        self._read()
        self.know(state)
        right: dict[str, np.ndarray] = {}
        found: dict[str, Identification] = {}
        outside: dict[str, np.ndarray] = {}
        seen = self.seen(stage)
        for domain in self.classified:
            task = domain.name
            if state.identifier is not None:
                found[task] = state.identifier.identify(self.evidence(task))
            measured = self.measured(state, task, found.get(task), seen)
            right |= {f"{setting}/{task}": value for setting, value in measured.right.items()}
            if measured.outside is not None:
                outside[task] = measured.outside
        learned = [task.name for group in state.groups for task in group.tasks]
        dense = {t: self.dense(t) for t in learned if self.domains[t].kind is not None}
        record = {
            "stage": stage,
            "task": self.stages[stage].name,
            "tasks": list(self.domains),
            "accuracy": {
                setting: [_percent(right.get(f"{setting}/{task}")) for task in self.domains]
                for setting in (*SETTINGS, *([CIL] if self.cut else []))
            },
            "metrics": dense,
            "own": {task: next(iter(figures)) for task, figures in dense.items()},
            "images": [len(table) for table in self._tables.values()],
            "identifier": identifier_record(found, outside, state.learned),
            "work": self._usage(stage, state),
            "lambda": state.weight,
            "parts": {task: self._parts(state, task) for task in self.stages[stage].tasks},
            "seconds": time.perf_counter() - clock,
        }
        name = f"evaluation/{stage:03d}"
        self.run.folder.write(
            f"{name}.safetensors", dump({k: v.astype(np.uint8) for k, v in right.items()})
        )
        self.run.folder.write_json(f"{name}.json", record)
        return record

    def _parts(self, state: State, task: str) -> dict[str, float]:
        """What the parts of a just learned function reach alone, the task given; percent."""
        function = state.function(task)
        if task not in state.records or function is None:
            return {}
        view, labels = self.view(task), self.labels(task)
        parts = state.method.parts(view, function, state.records[task].listed)
        found = {}
        for name, log_p in parts.items():
            right = log_p.argmax(axis=1) == labels
            found[name] = 100.0 * float(right.mean())
            sure = np.exp(log_p.max(axis=1))
            found[f"{name}/ece"] = 100.0 * expected_calibration_error(sure, right)
        return found

    def _usage(self, stage: int, state: State) -> dict[str, Any] | None:
        """What was asked of the multimodal model, with a few calls in full in a file of its own."""
        score_cache = None if state.identifier is None else state.identifier.score_cache
        if score_cache is None:
            return None
        usage, traces = score_cache.take_usage()
        if traces:
            self.run.folder.write_json(f"identifier/traces/{stage:03d}-test.json", traces)
        return usage.asdict()


def identifier_record(
    found: dict[str, Identification], outside: dict[str, np.ndarray], learned: list[str]
) -> dict[str, Any] | None:
    """Who was taken for what; columns in the order of learning, the last one is none."""
    if not found:
        return None
    options = len(learned)
    chosen: dict[str, np.ndarray] = {}
    for task, identification in found.items():
        column = np.array([learned.index(option) for option in identification.options], np.int64)
        closed = identification.closed
        chosen[task] = column[closed] if options else closed
    decided = {task: np.where(outside[task] > 0.5, options, chosen[task]) for task in found}
    confusion = [np.bincount(d, minlength=options + 1).tolist() for d in decided.values()]
    closed = np.array([np.bincount(chosen[task], minlength=options) for task in learned])
    fresh = [task for task in found if task not in learned]
    seen_novelty = np.concatenate([found[t].novelty for t in learned])
    accepted = [(outside[t] < 0.5).mean() for t in learned]
    own = [(decided[task] == i).mean() for i, task in enumerate(learned)]
    auc = None
    if fresh:
        auc = 100.0 * auroc(np.concatenate([found[t].novelty for t in fresh]), seen_novelty)
    return {
        "options": [*learned, "none"],
        "confusion": confusion,
        "closed_confusion": closed.tolist(),
        "seen_acceptance": 100.0 * float(np.mean(accepted)) if fresh else None,
        "unseen_auroc": auc,
        "closed_accuracy": 100.0 * float(np.mean(np.diag(closed) / closed.sum(axis=1))),
        "accuracy": 100.0 * float(np.mean(own)),
        "calibration_error": 100.0 * _calibration_error(found, outside, learned),
    }


def image_source(table: ImageTable, digest: str, label: str, rows: np.ndarray) -> ImageSource:
    """Some images of a table, to be looked at.

    Args:
        table: decoded images.
        digest: of the content of their split.
        label: their task, for traces.
        rows: which images.
    """
    key = hashlib.sha256(f"{digest}\n{table.size}\n{len(table)}".encode()).hexdigest()
    return ImageSource(lambda at: table.images(rows[at]), key, rows, len(table), label)


def _percent(right: np.ndarray | None) -> float | None:
    return None if right is None else 100.0 * float(right.mean())


def _calibration_error(
    found: dict[str, Identification], outside: dict[str, np.ndarray], learned: Sequence[str]
) -> float:
    """How far the stated confidence is from how often the likeliest option is right."""
    sure, right = [], []
    for task, identification in found.items():
        inside = (1.0 - outside[task])[:, None] * np.exp(identification.log_shares)
        p = np.concatenate([inside, outside[task][:, None]], axis=1)
        options = [*identification.options, None]
        truth = options.index(task if task in learned else None)
        sure.append(p.max(axis=1))
        right.append(p.argmax(axis=1) == truth)
    return expected_calibration_error(np.concatenate(sure), np.concatenate(right))
