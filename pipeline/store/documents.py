"""JSON as this project writes it: sorted, finite, the same bytes for the same value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON types. Tuples become lists, arrays lists, NaN and infinities null.

    Raises: TypeError for anything JSON cannot hold.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def loads(data: bytes) -> Any:
    """The value of a document that was written by `dumps`.

    Raises: ValueError for what is no JSON, is nested too deeply, or holds a number that is none.
    """
    try:
        return json.loads(data, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond what a number holds")
    return value


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no number")


def dumps(value: Any) -> bytes:
    """The bytes of `value`: keys sorted, indent 1, a newline at the end."""
    text = json.dumps(plain(value), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
