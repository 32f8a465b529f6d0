"""Stream readers by name. A file in `readers/` registers itself; nothing else names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.registry import Registry
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.domain import Reader
from archipelago.pipeline.streams.groups import LACKING

Factory = Callable[[StreamSettings, int], Reader]
readers: Registry[Factory] = Registry("archipelago.pipeline.streams.readers", "stream.reader")
register = readers.register
PROTOCOL: dict[str, Any] = {"shots": None, "steps": None}
"""Options of every reader of images with classes (`streams/parts.py`), with their defaults."""


def read_options(options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`stream.options` over a reader's defaults, whose types (or None: anything) are binding."""
    for key, value in options.items():
        if key in PROTOCOL:
            continue
        if key in LACKING and key not in defaults:
            raise UserError(f"stream.options.{key}: {LACKING[key]}")
        if key not in defaults:
            known = ", ".join(sorted(defaults | PROTOCOL))
            raise UserError(f"stream.options.{key}: unknown option; known are {known}")
        kind = type(defaults[key])
        allowed = (int, float) if kind is float else (kind,)
        if defaults[key] is not None and (
            not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool)
        ):
            raise UserError(f"stream.options.{key}: {value!r} is not a {kind.__name__}")
    return {**defaults, **options}
