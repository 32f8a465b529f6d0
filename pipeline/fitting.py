"""From what a stage's worker brings home, and from decoded images, to fields of records.

Shapes: n probe images, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from archipelago.pipeline.evaluation.views import Encoder, SplitView
from archipelago.pipeline.identifiers import ScoreCache
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.methods import Fitted
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import GroupRecord, Probe, TaskRecord
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, PreparedDomain
from archipelago.pipeline.training.export import PROBES
from archipelago.pipeline.training.spec import Outcome

log = logging.getLogger(__name__)

TRAINING_FACTS = ("images_per_second", "loss", "held_out_accuracy", "held_out_loss", "curve")


@dataclass(frozen=True)
class Looked:
    """What a stage's images say before anything is fitted.

    Attributes:
        records: of its tasks.
        seconds: that it took.
        until: when it was done.
    """

    records: list[TaskRecord]
    seconds: float
    until: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


def task_record(domain: PreparedDomain) -> TaskRecord:
    """What a record says of a task's data."""
    return TaskRecord(
        domain.name,
        tuple(domain.classes),
        tuple(domain.templates),
        dict(domain.digests),
        dict(domain.counts),
        domain.kind,
    )


def looked_at(
    record: TaskRecord, domain: PreparedDomain, encoder: Encoder, held: np.ndarray
) -> TaskRecord:
    """The record with sums and calibration rows of its training images.

    Where images belong together, the held-out ones stay out of the sums and are those that
    calibrate: one that is left out alone would be told by its near-copies.

    Args:
        record: of the task.
        domain: its decoded images.
        encoder: forms the sums.
        held: rows of its held-out fold, whole groups where there are groups.

    Raises:
        RuntimeError: the encoder lost a row.
    """
    table = ImageTable.open(domain.tables["train"])
    out = None if table.groups is None else held
    sums, rows = encoder.statistics(
        domain.tables["train"], np.arange(len(table)), len(domain.classes), out
    )
    expected = len(table) - (0 if out is None else len(out))
    if int(sums.total) != expected:
        raise RuntimeError(
            f"{domain.name}: statistics of {int(sums.total)} training images, not {expected}"
        )
    facts = dict(record.facts)
    if table.groups is not None:
        groups, without = len(np.unique(table.groups)), len(np.unique(table.groups[held]))
        facts["correlated"] = {"groups": groups, "held_out": without, "images": len(held)}
        log.info(
            "%s: %d groups of images that belong together; %d of them, %d of %d images, are kept "
            "out of the sums and calibrate",
            domain.name,
            groups,
            without,
            len(held),
            len(table),
        )
        if not len(held):
            log.warning("%s: no class has two groups of images: none calibrate", domain.name)
    return replace(record, sums=sums, rows=rows, facts=facts)


def fitted_of(outcome: Outcome, tasks: Sequence[str]) -> Fitted:
    """What training found, task by task."""
    facts = outcome.facts
    fields: dict[str, dict[str, Any]] = {}
    held: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    probed: dict[str, np.ndarray] = {}
    for task in tasks:
        temperature = float(facts["temperatures"][task])
        fields[task] = {"temperature": temperature}
        prefix = f"{task}/"
        stored = {
            key.removeprefix(prefix): tensor.numpy()
            for key, tensor in outcome.probe.items()
            if key.startswith(prefix)
        }
        if task in outcome.classes:
            held[task] = stored["held_rows"], stored["held_logits"]
            probed[task] = stored["rows"]
            scores = log_softmax(stored["logits"] / temperature).astype(np.float32)
            fields[task] |= {
                "own_CF": outcome.classes[task].numpy(),
                "probe": Probe(stored["images"], stored["labels"], scores),
            }
        else:
            fields[task]["outputs"] = stored
    return Fitted(
        dict(outcome.group),
        fields,
        facts["parameters"],
        [{**n, "gain": facts["gains"][n["task"]]} for n in facts["neighbours"]],
        facts["experts"],
        facts,
        held,
        probed,
    )


def group_of(
    stage: int,
    name: str,
    method: str,
    tasks: Sequence[TaskRecord],
    fitted: Fitted,
    earlier: Collection[GroupRecord],
) -> GroupRecord:
    """The record of a stage, with the hashes of what it stands on.

    Args:
        stage: its number.
        name: of the stage.
        method: that learned it.
        tasks: their finished records.
        fitted: what was fitted.
        earlier: the stages learned so far.
    """
    parent = max(earlier, key=lambda group: group.stage, default=None)
    hashes = {
        task.name: group.ref.sha256
        for group in earlier
        if group.ref is not None
        for task in group.tasks
    }
    return GroupRecord(
        stage,
        name,
        method,
        tuple(tasks),
        fitted.tensors,
        tuple({**n, "sha256": hashes[n["task"]]} for n in fitted.neighbours),
        fitted.parameters,
        None if parent is None or parent.ref is None else parent.ref.sha256,
        fitted.experts,
    )


def probe_of(
    state: State, encoder: Encoder, texts: Texts, record: TaskRecord, domain: PreparedDomain
) -> Probe:
    """A few training images with what the task's function says of them: for the canary.

    Args:
        state: knows the task already.
        encoder: computes their features.
        texts: class features by name.
        record: of the task.
        domain: its decoded images.
    """
    table = ImageTable.open(domain.tables["train"])
    rows = np.unique(np.linspace(0, len(table) - 1, min(PROBES, len(table))).astype(np.int64))
    compact, frozen = encoder.look(domain.tables["train"], rows)

    def fetch(function: Any, at: np.ndarray) -> np.ndarray:
        raise AssertionError("a function that was trained brings its own probe")

    view = SplitView(compact, frozen, fetch, texts, {})
    function = state.function(record.name)
    assert function is not None
    scores = state.method.scores(view, function, record.listed)
    assert scores is not None
    return Probe(table.images(rows), table.labels[rows].copy(), scores.astype(np.float32))


def note_usage(
    run: RunFolder, stage: int, record: TaskRecord, score_cache: ScoreCache | None
) -> None:
    """Journal what the multimodal model did for a stage; nothing where there is none."""
    described = record.description
    if score_cache is None or described is None:
        return
    usage, traces = score_cache.take_usage()
    if traces:
        run.folder.write_json(f"identifier/traces/{stage:03d}-{record.name}.json", traces)
    said = {key: described[key] for key in ("text", "by", "model")}
    run.journal.append("described", stage=stage, task=record.name, **said, work=usage.asdict())


def note_training(
    run: RunFolder,
    stage: int,
    name: str,
    attempt: int,
    fitted: Fitted,
    looked: Looked | None = None,
) -> None:
    """Journal how a stage was trained, or fitted in closed form.

    Args:
        run: whose journal it is.
        stage: its number.
        name: of the stage.
        attempt: at it.
        fitted: what came of it.
        looked: at its images, where that belongs to this attempt.
    """
    facts = fitted.facts
    seconds = {"look": looked.seconds if looked else 0.0}
    if facts:
        seconds |= {key: facts["seconds"][key] for key in ("trunk", "steps")}
    run.journal.append(
        "stage-trained",
        stage=stage,
        task=name,
        attempt=attempt,
        steps=facts.get("best_step", 0),
        **{key: facts.get(key) for key in TRAINING_FACTS},
        until=facts.get("until"),
        looked=looked.until if looked else None,
        seconds=seconds,
    )
