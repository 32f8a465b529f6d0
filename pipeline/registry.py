"""Things that are chosen by name: one file each in a folder, each registering itself."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from archipelago.pipeline.errors import UserError

T = TypeVar("T")
Kept = TypeVar("Kept")


class Registry(Generic[T]):
    """Names and what they stand for; the folder is imported when somebody first asks.

    Args:
        package: dotted name of the folder whose files register themselves.
        key: what a person writes to choose, for messages: `method.name`.
    """

    def __init__(self, package: str, key: str) -> None:
        self._package = package
        self._key = key
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Kept], Kept]:
        """Decorator: make a class or function selectable by `name`.

        Raises:
            ValueError: another file has taken the name.
        """

        def keep(thing: Kept) -> Kept:
            other = self._known.get(name)
            if other is not None and _home(other) != _home(thing):
                raise ValueError(f"two things are called {self._key}={name}: {other} and {thing}")
            self._known[name] = thing  # type: ignore[assignment]
            return thing

        return keep

    def known(self) -> dict[str, T]:
        """Everything by name, alphabetical; every file of the folder is imported once."""
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        return dict(sorted(self._known.items()))

    def get(self, name: str) -> T:
        """What `name` stands for.

        Raises:
            UserError: nothing; the line lists what there is.
        """
        known = self.known()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{self._key}={name}: unknown; choose one of {', '.join(known)}{hint}")
        return known[name]


def _home(thing: object) -> str:
    return str(getattr(thing, "__module__", ""))
