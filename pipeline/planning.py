"""Which stages a method learns a stream in."""

from __future__ import annotations

from collections.abc import Sequence

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams import Stage, plan_stages


def stages_of(settings: Settings, tasks: Sequence[str]) -> list[Stage]:
    """The stages in which the settings' method learns these tasks.

    Raises:
        UserError: `stream.stages` does not hold the tasks in their order, or puts several in one
            stage of a method that learns each by itself.
    """
    method = method_class(settings.method.name)
    stages = plan_stages(tasks, settings.stream.stages, joint=method.joint, alone=method.alone)
    crowded = next((s.tasks for s in stages if len(s.tasks) > 1 and not method.several), None)
    if crowded is not None:
        raise UserError(
            f"stream.stages: {method.name} learns each domain by itself, and [{', '.join(crowded)}]"
            " are one stage; take method=trge or method=ase, or leave out stream.stages"
        )
    return stages
