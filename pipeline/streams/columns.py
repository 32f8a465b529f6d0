"""What a parquet file says of its image and label columns, checked against the classes stated."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.names import alike, composed

log = logging.getLogger(__name__)

UNLABELLED = -1  # what sets of competitions hold where the answer is kept back


def check_image(where: str, kind: pa.DataType) -> None:
    """Refuse an image column of a type that holds neither bytes nor paths."""
    inner = kind
    if pa.types.is_struct(kind):
        fields = [name for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
        inner = kind.field(fields[0]).type if fields else kind
        if fields == ["path"] and not is_text_type(inner):
            fields = []
        if not fields:
            inner = kind
    if not (is_bytes_type(inner) or is_text_type(inner)):
        raise UserError(
            f"{where}: images are {kind}; use {{bytes, path}}, binary, or paths as text"
        )


def is_bytes_type(kind: pa.DataType) -> bool:
    """Whether values are bytes, however they are laid out."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_text_type(kind: pa.DataType) -> bool:
    """Whether values are text, however they are laid out."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def class_names(metadata: Any, column: str) -> list[str] | None:
    """Names of the labels as Hugging Face's schema states them; None where it does not."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names or None


def check_names(where: str, facts: str, stated: Sequence[str], stored: Sequence[str]) -> None:
    """Refuse a class list that contradicts the file's own: labels would be swapped.

    A list that only calls the classes otherwise is taken, with a warning.
    """
    ours, theirs = ([alike(name) for name in names] for names in (stated, stored))
    wrong = [i for i in range(min(len(ours), len(theirs))) if ours[i] != theirs[i]]
    if not wrong:
        return
    crossed = [i for i in wrong if ours[i] in theirs or theirs[i] in ours]
    if crossed or len(ours) != len(theirs):
        i = (crossed or wrong)[0]
        raise UserError(
            f"{where}: label {i} is {stored[i]!r} in the file's schema but {stated[i]!r} in "
            f"{facts}, which lists {len(stated)} classes to {len(stored)}; put the classes there "
            "in the order of the schema, or leave them out"
        )
    i = wrong[0]
    log.warning(
        "%s: label %d is %r in the file's schema; it is called %r, as %s says",
        where,
        i,
        stored[i],
        stated[i],
        facts,
    )


def check_labels(where: str, labels: pa.ChunkedArray, classes: Sequence[str], known: str) -> bool:
    """Refuse labels that no class answers to; returns whether they are class names.

    Args:
        where: the file, for messages.
        labels: the whole column.
        classes: class names.
        known: words that say where those are listed.

    Raises:
        UserError: with the first wrong label, or the type.
    """
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if is_text_type(labels.type):
        mine = {composed(name) for name in classes}
        found = pc.unique(labels.cast(pa.large_string()).drop_null()).to_pylist()
        unknown = sorted(name for name in found if composed(name) not in mine)
        if unknown:
            raise UserError(f"{where}: label {unknown[0]!r} is no class; {known}")
        return True
    if not pa.types.is_integer(labels.type):
        raise UserError(f"{where}: labels are {labels.type}; use class numbers or class names")
    span = pc.min_max(labels).as_py()
    for value in (span["min"], span["max"]):
        if value is not None and not 0 <= value < len(classes):
            raise UserError(f"{where}: label {value} is outside 0..{len(classes) - 1}; {known}")
    return False


def lack_of_labels(labels: pa.ChunkedArray) -> str | None:
    """What stands in the place of all labels, in words; None where there are some."""
    if not len(labels):
        return None
    if labels.null_count == len(labels):
        return "every label is null"
    if pa.types.is_integer(labels.type):
        span = pc.min_max(labels).as_py()
        if span["min"] == span["max"] == UNLABELLED:
            return f"every label is {UNLABELLED}"
    elif is_text_type(labels.type):
        found = pc.unique(labels.cast(pa.large_string()).drop_null()).to_pylist()
        if all(not name.strip() for name in found):
            return "every label is empty"
    return None
