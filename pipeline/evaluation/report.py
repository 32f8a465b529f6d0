"""report.json: every figure of a run in one validated document, rebuilt from the run folder.

Accuracies are percent, lists run over tasks in stream order, null means "not defined (yet)".
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
import numpy as np

from archipelago.pipeline.evaluation import cost, metrics, tables
from archipelago.pipeline.evaluation.cil import cil
from archipelago.pipeline.evaluation.joint import comparison, experts
from archipelago.pipeline.evaluation.protocol import CIL, SETTINGS
from archipelago.pipeline.evaluation.records import Records, read_records
from archipelago.pipeline.methods import methods
from archipelago.pipeline.records.card import descriptions
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.documents import plain

SCHEMA_VERSION = 2
GIVEN, IDENTIFIED = "mtil_given", "mtil_identified"


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of report.json, as shipped with the package."""
    return json.loads(
        resources.files(__package__).joinpath("report.schema.json").read_text("utf-8")
    )


def build_report(run: RunFolder) -> dict[str, Any]:
    """All figures of `run` so far. Raises FileNotFoundError where no run was ever opened."""
    return _build(_opened(run), _references(run))


def write_report(run: RunFolder, *, pictures: bool = True) -> dict[str, Any]:
    """Write report.json, matrix.parquet and confusion.parquet, each atomically; returns the report.

    `pictures=False` leaves out the plots and report.html (after a stage that is not the last).
    Raises jsonschema.ValidationError if the report breaks its own schema: a defect, never stored.
    """
    records = _opened(run)
    report = _build(records, _references(run))
    jsonschema.validate(report, schema(), cls=jsonschema.Draft202012Validator)
    run.folder.write("matrix.parquet", tables.matrix(report))
    run.folder.write("confusion.parquet", tables.confusion(records))
    if pictures:  # imported here: after most stages nothing is drawn
        from archipelago.pipeline.evaluation import html, plots

        for name, data in plots.render(report).items():
            run.folder.write(f"plots/{name}.png", data)
        run.folder.write("report.html", html.render(report).encode("utf-8"))
    run.folder.write_json("report.json", report)
    return report


def _build(records: Records, references: dict[str, Records]) -> dict[str, Any]:
    config = records.run["config"]
    oracle = records.matrix(GIVEN)
    matrix = _headline(records)
    others = {name: _reference(name, other, records) for name, other in references.items()}
    scores, given = _scores(matrix, records), _scores(oracle, records)
    joint = comparison(records, references)
    report = {
        "schema": SCHEMA_VERSION,
        "status": "complete" if records.complete else "partial",
        "method": config["method"]["name"],
        "setting": _setting(records),
        "stream": config["stream"]["reader"],
        "tasks": records.tasks,
        "stages": [list(stage.tasks) for stage in records.stages],
        "images": records.images(),
        "matrix": matrix,
        "matrix_oracle": oracle,
        "zero_shot": records.zero_row(GIVEN),
        "settings": {name: _setting_figures(records, name) for name in SETTINGS}
        | {CIL: cil(records)},
        "finetune": others.get("finetune", {}).get("row"),
        "upper_bound": others.get("lora_per_task", {}).get("row"),
        "references": others,
        **{name: score.mean for name, score in scores.items()},
        **{f"{name}_oracle": score.mean for name, score in given.items()},
        "columns": {name: score.columns for name, score in scores.items()},
        "forgetting": metrics.forgetting(matrix, records.learned),
        "bwt": metrics.bwt(matrix, records.learned),
        **joint,
        "per_task": _per_task(records),
        "calibration": _calibration(records),
        "intervals": _intervals(records),
        "identifier": _identifier(records),
        "parameters": cost.parameters(records),
        "bytes": cost.stored_bytes(records),
        "seconds": cost.seconds(records, references.values()),
        "groups": [cost.lineage(ref, card) for ref, card in records.groups],
        "experts": experts(records),
        "backbone": records.run["backbone"],
        "seed": records.run.get("seed"),
        "kernels": records.run.get("kernels"),
        "versions": records.run["versions"],
    }
    return _rounded(plain(report))


def _headline(records: Records) -> np.ndarray:
    """MTIL with identified tasks; with given ones for a method that does not tell tasks apart."""
    matrix = records.matrix(IDENTIFIED)
    return records.matrix(GIVEN) if np.isnan(matrix).all() else matrix


def _setting_figures(records: Records, name: str) -> dict[str, Any] | None:
    """Everything that was measured in one setting; None where the method has no answer in it."""
    matrix = records.matrix(name)
    if np.isnan(matrix).all():
        return None
    stages = [records.evaluations.get(i, {}) for i in range(len(records.stages))]
    answers = [stage.get("identifier") or {} for stage in stages]
    last = max(records.evaluations, default=0)
    rows = [records.row(stage, name) for stage in range(len(records.stages))]
    return {
        "matrix": matrix,
        **{key: score.mean for key, score in _scores(matrix, records).items()},
        "zero_shot": records.zero_row(name),
        "zero_shot_debiased": records.zero_row(f"{name}/debiased"),
        "seen_acceptance": [answer.get("seen_acceptance") for answer in answers],
        "unseen_auroc": [answer.get("unseen_auroc") for answer in answers],
        "intervals": {
            "average": _interval(records, metrics.mean_over_stages(rows)),
            "last": _interval(records, rows[last]),
        },
    }


def _per_task(records: Records) -> dict[str, dict[str, Any]]:
    """What the parts of each learned function reach alone, and what a trained group gained."""
    found: dict[str, dict[str, Any]] = {}
    for ref, card in records.groups:
        parts = records.evaluations.get(ref.stage, {}).get("parts", {})
        seconds = cost.stage_seconds(records, ref.stage)
        for task in card["tasks"]:
            group = task["facts"].get("group", {})
            reached = parts.get(task["name"], {})
            found[task["name"]] = {
                "head_accuracy": reached.get("head"),
                "group_accuracy": reached.get("group"),
                "both_accuracy": reached.get("both"),
                "fold": group.get("fold"),
                "gain": group.get("gain"),
                "group_kept": group.get("kept"),
                "seconds": seconds,
            }
    return found


def _calibration(records: Records) -> dict[str, float | None]:
    """Expected calibration error of the functions on test images, the task given, percent."""
    every = [p for r in records.evaluations.values() for p in r.get("parts", {}).values()]
    after = [p["both/ece"] for p in every if "both/ece" in p]
    before = [p["uncalibrated/ece"] for p in every if "uncalibrated/ece" in p]
    return {
        "ece": float(np.mean(after)) if after else None,
        "ece_before": float(np.mean(before)) if before else None,
    }


def _interval(records: Records, row: list[np.ndarray | None]) -> list[float] | None:
    """Bootstrap interval of a mean over tasks, percent."""
    known = [100.0 * np.asarray(images, np.float64) for images in row if images is not None]
    if not known:
        return None
    samples = records.run["config"]["evaluation"]["bootstrap"]
    found = metrics.paired_bootstrap(known, samples, records.run.get("seed") or 0)
    return [found.low, found.high]


def _scores(matrix: np.ndarray, records: Records) -> dict[str, metrics.Score]:
    return {
        "transfer": metrics.transfer(matrix, records.learned),
        "average": metrics.average(matrix),
        "last": metrics.last(matrix),
    }


def _opened(run: RunFolder) -> Records:
    records = read_records(run)
    if records is None:
        raise FileNotFoundError(f"{run.folder.shown()} holds no run.json: nothing to report yet")
    return records


def _references(run: RunFolder) -> dict[str, Records]:
    """Records of the runs under `references/` that have measured anything, by method."""
    records = {name: read_records(other) for name, other in run.references().items()}
    return {name: found for name, found in records.items() if found and found.evaluations}


def _reference(name: str, other: Records, records: Records) -> dict[str, Any]:
    """A reference's figures; its last row only once it has learned the same tasks."""
    matrix = _headline(other)
    scores = {key: score.mean for key, score in _scores(matrix, other).items()}
    same = other.complete and other.tasks == records.tasks
    return {
        "row": metrics.last(matrix).columns if same else None,
        "matrix": matrix,
        **scores,
        "settings": {setting: _figures(other, setting) for setting in SETTINGS} if same else {},
    }


def _figures(records: Records, setting: str) -> dict[str, Any] | None:
    """Transfer, Average, Last and the last row in one setting; None where there is no answer."""
    matrix = records.matrix(setting)
    if np.isnan(matrix).all():
        return None
    scores = {key: score.mean for key, score in _scores(matrix, records).items()}
    return {**scores, "row": metrics.last(matrix).columns}


def _setting(records: Records) -> str:
    """Who knows the task, as every table must say (the class list alone may reveal it)."""
    config = records.run["config"]
    method = methods.known().get(config["method"]["name"])
    policy = None if method is None else method.policy
    if config["identifier"]["name"] == "oracle" or policy == "given":
        return "task given"
    if policy == "one":
        return "one model for all tasks"
    if method is not None and method.joint and len(records.stages) == 1:
        return "all tasks learned at once, task identified"
    return "task identified"


def _identifier(records: Records) -> dict[str, Any] | None:
    """Figures of the identifier: the last stage's, and a list where the stages matter."""
    if records.newest is None or records.newest["identifier"] is None:
        return None
    newest = records.newest["identifier"]
    stages = [records.evaluations.get(i, {}) for i in range(len(records.stages))]
    answers = [stage.get("identifier") or {} for stage in stages]
    return {
        **_model(records),
        "accuracy_per_task": _own_accuracy(newest, records.newest["tasks"]),
        "closed_accuracy": newest["closed_accuracy"],
        "accuracy": newest["accuracy"],
        "calibration_error": [answer.get("calibration_error") for answer in answers],
        "seen_acceptance": [answer.get("seen_acceptance") for answer in answers],
        "unseen_auroc": [answer.get("unseen_auroc") for answer in answers],
        "lambda": [stage.get("lambda") for stage in stages],
        "options": newest["options"],
        "confusion": newest["confusion"],
        "closed_confusion": newest["closed_confusion"],
    }


def _model(records: Records) -> dict[str, Any]:
    """Who identified, and what was asked of the multimodal model about test images, in all stages.

    `calls` are decisions on an image that wanted the model's opinion, `scorings` what it had to
    compute for them: a score that is known already costs nothing.
    """
    settings = records.run["config"]["identifier"]
    works = [record.get("work") for record in records.evaluations.values()]
    known = [work for work in works if work]
    seconds = sum(work["seconds"] for work in known)
    images = sum(work["images"] for work in known)
    biases = [work.get("position_bias") for work in reversed(known)]
    counts = ("calls", "scorings", "fallbacks", "parse_failures")
    words = [d for _, card in records.groups for d in descriptions(card).values()]
    models = [description["model"] for description in words if description["model"]]
    return {
        "backend": settings["name"],
        "model": (models[-1] if models else settings.get("model")) if known else None,
        "scoring": settings.get("scoring") if known else None,
        **{name: sum(work[name] for work in known) for name in counts},
        "images_per_second": images / seconds if seconds else None,
        "position_bias": next(filter(None, biases), None),
    }


def _own_accuracy(identifier: dict[str, Any], tasks: list[str]) -> dict[str, float | None]:
    """Percent of each learned task's test images that were given to it, last stage."""
    options = identifier["options"][:-1]
    counts = dict(zip(tasks, identifier["confusion"], strict=True))
    own = {task: (counts[task][i], sum(counts[task])) for i, task in enumerate(options)}
    return {task: 100.0 * right / total if total else None for task, (right, total) in own.items()}


def _intervals(records: Records) -> dict[str, Any]:
    """Paired-bootstrap intervals over the test images, in points; null without per-image files."""
    samples = records.run["config"]["evaluation"]["bootstrap"]
    stages = range(len(records.stages))
    given = np.isnan(records.matrix(IDENTIFIED)).all()
    rows = [records.row(stage, GIVEN if given else IDENTIFIED) for stage in stages]
    frozen = records.zero_images(GIVEN)
    last = max(records.evaluations, default=0)
    gains = {
        "transfer_minus_zero_shot": metrics.transfer_gain(rows, frozen, records.learned),
        "last_minus_zero_shot": metrics.row_gain(rows[last], frozen),
        "last_minus_oracle": metrics.row_gain(rows[last], records.row(last, GIVEN)),
    }
    seed = records.run.get("seed") or 0
    return {
        "level": 0.95,
        "samples": samples,
        **{
            name: metrics.paired_bootstrap(gain, samples, seed)._asdict() if gain else None
            for name, gain in gains.items()
        },
    }


def _rounded(value: Any) -> Any:
    """Four decimals are far below any uncertainty here and keep the file readable."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
