"""Stream readers by name. A file in `readers/` registers itself; nothing else names it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.settings import StreamSettings
from pipeline.streams.domain import Reader

Factory = Callable[[StreamSettings, int], Reader]
F = TypeVar("F", bound=Callable[..., Any])

_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[F], F]:
    """Register the decorated factory (or class) `(StreamSettings, seed) -> Reader` under `name`."""

    def keep(factory: F) -> F:
        known = _FACTORIES.get(name)
        if known is not None and known.__module__ != factory.__module__:
            raise ValueError(f"two readers are called {name!r}: {known} and {factory}")
        _FACTORIES[name] = factory
        return factory

    return keep


def reader(name: str) -> Factory:
    """The factory registered as `name`; raises UserError that lists the known ones."""
    _discover()
    if name not in _FACTORIES:
        raise UserError(f"stream.reader: no reader {name!r}; known are {', '.join(known())}")
    return _FACTORIES[name]


def known() -> list[str]:
    """Names of all readers, alphabetical."""
    _discover()
    return sorted(_FACTORIES)


def _discover() -> None:
    package = importlib.import_module("pipeline.streams.readers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def read_options(options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`stream.options` over a reader's defaults, whose types (or None: anything) are binding."""
    for key, value in options.items():
        if key not in defaults:
            raise UserError(
                f"stream.options.{key}: unknown option; known are {', '.join(sorted(defaults))}"
            )
        kind = type(defaults[key])
        allowed = (int, float) if kind is float else (kind,)
        if defaults[key] is not None and (
            not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool)
        ):
            raise UserError(f"stream.options.{key}: {value!r} is not a {kind.__name__}")
    return {**defaults, **options}
