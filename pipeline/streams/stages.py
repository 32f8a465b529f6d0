"""Stages of a stream: which tasks are learned together, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archipelago.pipeline.errors import UserError

LONGEST_NAME = 80


@dataclass(frozen=True)
class Stage:
    """Tasks that train one group: usually one, several where they are learned jointly."""

    number: int
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The task's name, or the names of several joined; its group is stored under it."""
        joined = "+".join(self.tasks)
        if len(self.tasks) == 1 or len(joined) <= LONGEST_NAME:
            return joined
        return f"{self.tasks[0]}+{len(self.tasks) - 1}"


def plan_stages(
    tasks: Sequence[str],
    stages: Sequence[Sequence[str]] | None = None,
    *,
    joint: bool = False,
    alone: bool = False,
) -> list[Stage]:
    """The stages of a stream whose tasks come in this order.

    Args:
        tasks: all tasks in the order of learning.
        stages: `stream.stages`; None = one task a stage, or all in one if `joint`.
        joint: the method learns all tasks at once.
        alone: the method learns each task by itself, whatever `stages` says.

    Raises:
        UserError: the stages are not the tasks in their order, or two names are the same.
    """
    if alone or (stages is None and not joint):
        stages = [[task] for task in tasks]
    elif stages is None:
        stages = [list(tasks)]
    flat = [task for stage in stages for task in stage]
    if flat != list(tasks) or not all(stages):
        raise UserError(
            f"stream.stages: holds [{', '.join(flat)}], the stream's tasks are"
            f" [{', '.join(tasks)}]; name each task once, in the order of stream.order"
        )
    planned = [Stage(number, tuple(stage)) for number, stage in enumerate(stages)]
    names = [stage.name for stage in planned]
    clash = [s.name for s in planned if len(s.tasks) > 1 and (s.name in tasks)]
    if clash or len(set(names)) != len(names):
        raise UserError(f"stream.stages: two groups would be called {(clash or names)[0]!r}")
    return planned
