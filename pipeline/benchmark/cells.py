"""One method in one world: its row of the comparison, kept beside its run.

Shapes: N test images of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from archipelago.pipeline.benchmark.plan import Rival, World
from archipelago.pipeline.evaluation.evaluator import Evaluator
from archipelago.pipeline.evaluation.protocol import CIL, SETTINGS
from archipelago.pipeline.learned.answering import Question
from archipelago.pipeline.learned.candidates import match
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.methods import build_method, method_class
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, PreparedDomain, stratified_fold
from archipelago.pipeline.training.loop import planned_steps

CELL = "cell.json"
FIGURES = ("transfer", "average", "last")


def image_gradients(settings: Settings, domains: Sequence[PreparedDomain]) -> int:
    """Images that gradients are taken of in a whole run: `batch_size` for each planned step.

    It follows from `training` and the data alone, so that it is the same for every method that
    trains, whether it learns domain by domain or all at once.
    """
    if not build_method(settings).trains:
        return 0
    rows = []
    for domain in domains:
        table, held_out = ImageTable.open(domain.tables["train"]), settings.stream.held_out
        kept, _ = stratified_fold(table.labels, held_out, settings.seed, domain.name, table.groups)
        rows.append(len(kept))
    return settings.training.batch_size * planned_steps(settings.training, *rows)


def passes(state: State, evaluator: Evaluator) -> float:
    """Passes of the image encoder for a prediction, on average over the stream's test images.

    One of frozen CLIP, two with `identifier.mirror`, and one, from the trunk on, for each function
    with weights that is run for an image; candidates are all classes of the stream, or the given
    task's.
    """
    frozen = 1.0 + state.method.settings.identifier.mirror
    if state.method.policy == "given":
        return frozen + state.method.trains
    images = wanted = 0
    candidates = match(evaluator.pairs, state.records)
    for domain in evaluator.classified:
        view = evaluator.view(domain.name)
        found = None
        if state.identifier is not None:
            found = state.identifier.identify(evaluator.evidence(domain.name))
        images += len(view)
        wanted += len(Question(state, candidates, view, found).pairs())
    return frozen + wanted / max(images, 1)


def row_of(
    rival: Rival,
    world: World,
    report: dict[str, Any],
    *,
    gradients: int,
    per_prediction: float,
    peak_mib: float | None,
    learned_s: float,
) -> dict[str, Any]:
    """A row of compare.json from a finished run's report."""
    settings = {}
    for name in (*SETTINGS, CIL):
        found = report["settings"].get(name)
        settings[name] = None if found is None else {key: found[key] for key in FIGURES}
    identifier = report["identifier"]
    trained, kept, size = _stored(rival, report)
    return {
        "method": rival.label,
        "stream": world.stream or report["stream"],
        "seed": world.seed,
        "order": world.order,
        "settings": settings,
        "forgetting": report["forgetting"],
        "identifier": None if identifier is None else identifier["closed_accuracy"],
        "seen_acceptance": _mean(identifier, "seen_acceptance"),
        "unseen_auroc": _mean(identifier, "unseen_auroc"),
        "parameters": trained + kept,
        "parameters_trained": trained,
        "parameters_identifier": kept,
        "bytes": size,
        "passes": per_prediction,
        "image_gradients": gradients,
        "seconds": learned_s,
        "seconds_total": report["seconds"]["total"],
        "peak_mib": peak_mib,
    }


def _stored(rival: Rival, report: dict[str, Any]) -> tuple[int, int, int]:
    """Numbers that were trained, numbers that identify, and bytes of both, needed for an answer.

    Of a method that goes on with the same weights only the newest ones are.
    """
    groups = report["groups"]
    needed = groups[-1:] if method_class(rival.method).continues else groups
    trained = sum(group["parameters"]["group"] for group in needed)
    kept = sum(group["parameters"].get("identifier") or 0 for group in groups)
    size = sum(group["bytes"]["group"] for group in needed)
    return trained, kept, size + sum(group["bytes"]["identity"] for group in groups)


def _mean(identifier: dict[str, Any] | None, key: str) -> float | None:
    """Mean over the stages that have a figure; the last has no unseen task."""
    known = [v for v in (identifier or {}).get(key, ()) if v is not None]
    return float(np.mean(known)) if known else None


def learning_seconds(run: RunFolder) -> float:
    """Seconds from the first image of a stage to its record, over all stages."""
    total = 0.0
    for event in run.journal.events():
        spent = event.get("seconds")
        if event["event"] == "stage-done" and isinstance(spent, dict):
            total += float(spent.get("stage") or 0.0)
        if event["event"] == "refined" and isinstance(spent, dict):
            total += float(spent.get("fit") or 0.0)
    return total
