"""What a stored card says of the data that a stage was learned from, over all its tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def data_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """`digests` and `counts` by split, and the number of `classes`; of several tasks together."""
    tasks = card["tasks"]
    splits = list(tasks[0]["digests"])
    return {
        "digests": {split: _joined([t["digests"][split] for t in tasks]) for split in splits},
        "counts": {split: sum(t["counts"].get(split) or 0 for t in tasks) for split in splits},
        "classes": sum(len(task["classes"]) for task in tasks),
    }


def descriptions(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Descriptions by task; empty where nobody wrote any."""
    return {t["name"]: dict(t["description"]) for t in card["tasks"] if t["description"]}


def _joined(digests: list[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
