"""What was measured after a stage, `evaluation/NNN.json`: read by shape, or refused by name."""

from __future__ import annotations

from typing import Any

import jsonschema
from safetensors import SafetensorError
from safetensors.numpy import load

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import Folder

ZERO_SHOT = "zero-shot"
TITLES = {
    "mtil_given": "domain given",
    "mtil_identified": "domain recognised",
    "xtail": "all classes of all domains",
    "xtail_merged": "all classes, equal names as one",
    "cil": "all classes so far",
}
"""Settings of evaluation, which are named after the protocols they come from, in plain words."""

_NUMBER, _NAME, _MAYBE = {"type": "number"}, {"type": "string"}, {"type": ["number", "null"]}
_NAMES = {"type": "array", "items": _NAME}
_ROW = {"type": "array", "items": _MAYBE}
_COUNTS = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}


def _object(required: str, others: dict[str, Any] | None = None, **known: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"type": "object", "required": required.split(), "properties": known}
    return document if others is None else document | {"additionalProperties": others}


_SCORE = _object("value unit lower_is_better", value=_MAYBE, unit=_NAME)
_SCORE["properties"]["lower_is_better"] = {"type": "boolean"}
_IDENTIFIER = _object(
    "options confusion closed_confusion accuracy closed_accuracy",
    options=_NAMES | {"minItems": 1},
    confusion=_COUNTS,
    closed_confusion=_COUNTS,
    accuracy=_NUMBER,
    closed_accuracy=_NUMBER,
    calibration_error=_MAYBE,
    seen_acceptance=_MAYBE,
    unseen_auroc=_MAYBE,
)
_WORK = _object(
    "seconds images calls scorings fallbacks parse_failures",
    position_bias={"type": ["object", "null"]},
    **dict.fromkeys(
        ("seconds", "images", "calls", "scorings", "fallbacks", "parse_failures"), _NUMBER
    ),
)
_NOTHING = {"type": "null"}
_RECORD = _object(
    "tasks accuracy images identifier metrics own",
    stage={"type": "integer"},
    task=_NAME,
    tasks=_NAMES,
    accuracy=_object("mtil_given", _ROW),
    images={"type": "array", "items": {"type": "integer"}},
    identifier={"anyOf": [_NOTHING, _IDENTIFIER]},
    metrics=_object("", _object("", _SCORE)),
    own=_object("", _NAME),
    work={"anyOf": [_NOTHING, _WORK]},
    parts=_object("", _object("", _NUMBER)),
    seconds=_NUMBER,
    **{"lambda": _MAYBE},
)
_FROZEN = _object(
    "tasks accuracy settings", tasks=_NAMES, accuracy=_ROW, settings=_object("", _ROW)
)
_Validator = jsonschema.Draft202012Validator


def read_evaluation(folder: Folder, stage: int | None) -> dict[str, Any] | None:
    """The record of a stage, or of frozen CLIP; None where nothing was measured.

    Args:
        folder: the run's.
        stage: its number, None = frozen CLIP before all stages.

    Raises:
        IntegrityError: the file is damaged; names it and the mend.
    """
    name = _name(stage, "json")
    try:
        record = folder.read_json(name)
    except FileNotFoundError:
        return None
    except ValueError:
        raise _damaged(folder, name, "is not JSON") from None
    fault = jsonschema.exceptions.best_match(
        _Validator(_FROZEN if stage is None else _RECORD).iter_errors(record)
    )
    if fault is not None:
        where = ".".join(str(part) for part in fault.absolute_path) or "the document"
        raise _damaged(folder, name, f"has another shape at {where}")
    if misaligned := _misaligned(record):
        raise _damaged(folder, name, f"has no value for each task in {misaligned}")
    return dict(record)


def read_correct(folder: Folder, stage: int | None) -> dict[str, Any] | None:
    """Which test images were right, by `<setting>/<task>`: (N,) uint8; None where nothing was.

    Raises: IntegrityError, like `read_evaluation`.
    """
    name = _name(stage, "safetensors")
    try:
        found = load(folder.read(name))
    except FileNotFoundError:
        return None
    except SafetensorError:
        raise _damaged(folder, name, "is not in safetensors format") from None
    if any(values.ndim != 1 or values.dtype.kind not in "uib" for values in found.values()):
        raise _damaged(folder, name, "holds other tensors than rows of 0 and 1")
    return dict(found)


def _name(stage: int | None, end: str) -> str:
    return f"evaluation/{ZERO_SHOT if stage is None else f'{stage:03d}'}.{end}"


def _damaged(folder: Folder, name: str, what: str) -> IntegrityError:
    """The mend deletes both files of the stage: they are measured together."""
    both = f"{name.rpartition('.')[0]}.*"
    return IntegrityError(
        f"{folder.shown(name)} {what}: delete {both} and run again, which measures it anew"
    )


def _misaligned(record: dict[str, Any]) -> str | None:
    """The first list that is not as long as there are tasks."""
    count = len(record["tasks"])
    rows = (
        {"accuracy": record["accuracy"]}
        if "settings" in record
        else {f"accuracy.{setting}": row for setting, row in record["accuracy"].items()}
    )
    rows |= {f"settings.{setting}": row for setting, row in record.get("settings", {}).items()}
    if "images" in record:
        rows["images"] = record["images"]
    if answer := record.get("identifier"):
        rows["identifier.confusion"] = answer["confusion"]
        if any(len(row) != len(answer["options"]) for row in answer["confusion"]):
            return "identifier.confusion"
    return next((name for name, row in rows.items() if len(row) != count), None)
