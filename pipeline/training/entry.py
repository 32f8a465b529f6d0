"""Where a Ray Train worker begins: light, for Train's controller imports it and needs no more."""

from __future__ import annotations

from typing import Any


def enter(config: dict[str, Any]) -> None:
    """Body of one worker: stages from `config["queue"]`, a `StageQueue`, as long as there are."""
    import ray
    from ray.train import get_context

    queue = config["queue"]
    ray.get(queue.start.remote(get_context().get_world_rank()))
    try:
        from archipelago.pipeline.training.worker import work

        work(queue)
    except Exception as error:
        ray.get(queue.stumbled.remote(f"{type(error).__name__}: {error}"))
        raise
