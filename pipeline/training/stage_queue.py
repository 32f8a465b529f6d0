"""Stages on their way to workers that stay for the next one; light, for an actor of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Ending:
    """What became of a stage.

    Attributes:
        how: `done`; `refused` = no other attempt could succeed; `failed` = its workers were lost
            more often than is allowed; `lost` = the workers ended for a reason of their own.
        reason: in words, where it is not done.
    """

    how: Literal["done", "refused", "failed", "lost"]
    reason: str = ""


class StageQueue:
    """Hands stages to the ranks of one Ray Train run, one after another: an actor.

    Ray Train starts all ranks anew when one is lost. So a stage is done once every rank of one such
    start has finished it; until then it is what a rank that starts anew is given.

    Args:
        world: number of ranks.
        max_failures: starts of the workers that a stage survives.
    """

    def __init__(self, world: int, max_failures: int) -> None:
        self._world, self._max_failures = world, max_failures
        self._stages: list[dict[str, Any]] = []
        self._endings: list[Ending] = []
        self._closed = False
        self._begun: set[int] = set()  # ranks of this start of the workers
        self._finished: set[int] = set()  # of them, those that are through with the stage in hand
        self._failures = 0  # of the stage in hand
        self._reason = "a worker died"
        self._changed = asyncio.Condition()

    async def add(self, stage: dict[str, Any]) -> int:
        """Queue a stage in plain form; returns its number."""
        async with self._changed:
            self._stages.append(stage)
            self._changed.notify_all()
            return len(self._stages) - 1

    async def start(self, rank: int) -> None:
        """A rank is new; where it was there before, all are, and the stage in hand has failed."""
        async with self._changed:
            if rank in self._begun:
                self._begun.clear()
                self._finished.clear()
                self._failures += len(self._endings) < len(self._stages)
                if self._failures > self._max_failures:
                    self._end(Ending("failed", self._reason))
                    self._closed = True
            self._begun.add(rank)

    async def take(self, after: int | None) -> tuple[int, dict[str, Any]] | None:
        """The next stage of a rank, waited for; None = there is nothing more to do.

        Args:
            after: the stage that it has finished; None = it has just started.
        """
        async with self._changed:
            wanted = len(self._endings) if after is None else after + 1
            await self._changed.wait_for(
                lambda: self._closed or len(self._endings) == wanted < len(self._stages)
            )
            return None if self._closed else (wanted, self._stages[wanted])

    async def finished(self, number: int, rank: int) -> None:
        """A rank is through with a stage."""
        async with self._changed:
            if number != len(self._endings):
                return
            self._finished.add(rank)
            if len(self._finished) == self._world:
                self._end(Ending("done"))

    async def stumbled(self, reason: str) -> None:
        """A rank says why it is about to end."""
        self._reason = reason

    async def close(self, ending: Ending | None = None) -> None:
        """Nothing more to do; `ending` is that of the stage in hand, where there is one."""
        async with self._changed:
            waiting = not self._closed and len(self._endings) < len(self._stages)
            if ending is not None and waiting:
                self._end(ending)
            self._closed = True
            self._changed.notify_all()

    async def ended(self, number: int) -> Ending:
        """What became of a stage, waited for."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or number < len(self._endings))
            if number < len(self._endings):
                return self._endings[number]
            return Ending("lost", "the workers ended")

    def _end(self, ending: Ending) -> None:
        self._endings.append(ending)
        self._finished.clear()
        self._failures = 0
        self._reason = "a worker died"
        self._changed.notify_all()
