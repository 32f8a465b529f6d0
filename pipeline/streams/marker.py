"""The marker of a decoded split: written last, so that a split without it does not exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMPLETE = "COMPLETE"


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The facts of a complete entry, or None where it is absent or any shard is torn."""
    return marker_of(
        lambda: (folder / COMPLETE).read_bytes(), lambda file: (folder / file).stat().st_size
    )


def marker_of(read: Callable[[], bytes], size: Callable[[str], int]) -> dict[str, Any] | None:
    """The same, wherever it lies.

    Args:
        read: gives the bytes of the marker.
        size: gives the bytes of a shard by its name; both raise OSError where there is none.
    """
    try:
        marker: dict[str, Any] = json.loads(read())
        whole = all(size(shard["file"]) == shard["bytes"] for shard in marker["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return marker if whole else None
