"""Where a Ray Train worker begins: light, for Train's controller imports it and needs no more."""

from __future__ import annotations

from typing import Any


def enter(config: dict[str, Any]) -> None:
    """Body of one worker: a stage in plain form, as `StageSpec.plain` gives it."""
    from archipelago.pipeline.training.worker import work

    work(config)
