"""What may differ when a run is started again on its folder: tasks append, little else changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import own_keys
from archipelago.pipeline.redact import HIDDEN
from archipelago.pipeline.settings import default_of

log = logging.getLogger(__name__)

CHANGEABLE: tuple[str, ...] = (
    "cluster",
    "tracking",
    "serve",
    "publish",
    "serving",
    "evaluation.batch_size",
    "evaluation.references",
    "evaluation.references_in",
    "identifier.attention",
    "identifier.batch_size",
    "identifier.concurrency",
    "identifier.device",
    "identifier.dtype",
    "identifier.endpoint",
    "identifier.retries",
    "identifier.timeout_s",
    "stream.order",
    "stream.root",
    "stream.stages",
    "run_dir",
)
"""Config keys, each with all below it, that leave the learned groups as they are."""

LATER: dict[str, Any] = {
    "stream.options.train": "train",
    "stream.options.test": "test",
    "stream.options.templates": ["a photo of a {}."],
    "stream.options.shots": None,
    "stream.options.steps": None,
    "stream.options.group": None,
    "stream.options.group_pattern": None,
    "method.options.joint": 0.0,
    "method.options.predicted": 0.0,
    "method.options.cca": 0.0,
}
"""Options that runs of earlier versions did not store, with their defaults."""

_UNSET = "unset"


def merge(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """run.json of a run that is started again: `stored` and `new` are whole run.json documents.

    Config and tasks become the new ones; kernels stay as first chosen; tracking facts are kept
    where the new ones are null. A key that did not exist yet counts as its default.
    Raises: UserError in one line: a changed key with both values, or tasks that do not continue
    the stored ones.
    """
    check_continues(stored, new["config"], new["stream"])
    _check_same("backbone.", stored["backbone"], new["backbone"], ())
    if stored["versions"] != new["versions"]:
        log.warning(
            "the run began with other package versions; equal group hashes are not promised"
        )
    fresh = {key: value for key, value in new["tracking"].items() if value is not None}
    return {**new, "kernels": stored["kernels"], "tracking": {**stored["tracking"], **fresh}}


def check_continues(
    stored: Mapping[str, Any], config: Mapping[str, Any], stream: Mapping[str, Any]
) -> None:
    """Whether a run may go on with these settings and tasks.

    Args:
        stored: its run.json.
        config: resolved, redacted settings.
        stream: `tasks` in order and their `stages`.

    Raises:
        UserError: a changed key with both values, or tasks that do not continue the stored ones.
    """
    name = config.get("identifier", {}).get("name")
    _check_same("", own_keys(stored["config"], name), config, CHANGEABLE)
    _check_tasks(stored["stream"]["tasks"], stream["tasks"])
    _check_stages(stored["stream"], stream)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) pairs; lists are leaves, empty mappings have none."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _check_tasks(stored: Sequence[str], new: Sequence[str]) -> None:
    if list(new[: len(stored)]) != list(stored):
        raise UserError(
            f"stream.order: this run learned [{', '.join(stored)}] and the new order is "
            f"[{', '.join(new)}]; append new tasks to the old order or use another run_dir"
        )


def _check_stages(stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    old, now = (s.get("stages") or [[task] for task in s["tasks"]] for s in (stored, new))
    if now[: len(old)] != old:
        raise UserError(
            f"stream.stages: this run learned {_shown(old)} and is now {_shown(now)}; append new"
            " stages to the old ones or use another run_dir"
        )


def _shown(stages: Sequence[Sequence[str]]) -> str:
    return "[" + ", ".join(f"[{', '.join(stage)}]" for stage in stages) + "]"


def _default(key: str) -> Any:
    return LATER[key] if key in LATER else default_of(key)


def _check_same(
    prefix: str, stored: Mapping[str, Any], new: Mapping[str, Any], changeable: Sequence[str]
) -> None:
    old, now = dict(flatten(stored)), dict(flatten(new))
    changes = [
        f"{prefix}{key} was {old.get(key, _UNSET)!r} and is now {now.get(key, _UNSET)!r}"
        for key in sorted(old.keys() | now.keys())
        if old.get(key, _default(prefix + key)) != now.get(key)
        and HIDDEN not in str(old.get(key))  # what was hidden cannot be compared
        and not any(key == free or key.startswith(f"{free}.") for free in changeable)
    ]
    if changes:
        listed = "; ".join(changes[:5]) + ("; ..." if len(changes) > 5 else "")
        raise UserError(f"{listed}: use the run's own value or another run_dir")
