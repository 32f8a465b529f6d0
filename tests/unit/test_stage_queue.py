"""Who trains what, where ranks come, go and start anew."""

from __future__ import annotations

import asyncio
from typing import Any

from archipelago.pipeline.training.stage_queue import Ending, StageQueue


def test_a_stage_is_done_when_every_rank_is_through() -> None:
    async def story() -> None:
        queue = StageQueue(2, 0)
        for rank in (0, 1):
            await queue.start(rank)
        await queue.add({"stage": 7})
        assert await queue.take(None) == await queue.take(None) == (0, {"stage": 7})
        await queue.finished(0, 0)
        await queue.add({"stage": 8})
        ahead = asyncio.create_task(queue.take(0))
        await asyncio.sleep(0.01)
        assert not ahead.done(), "a rank waits until the others are through"
        await queue.finished(0, 1)
        assert await ahead == (1, {"stage": 8})
        assert await queue.ended(0) == Ending("done")

    asyncio.run(story())


def test_ranks_that_start_anew_go_on_with_the_stage_in_hand() -> None:
    async def story() -> None:
        queue = StageQueue(2, 1)
        await queue.add({})
        await queue.add({})
        for rank in (0, 1):
            await queue.start(rank)
        await queue.finished(0, 0)  # then the other is lost, and Train starts both anew
        for rank in (1, 0):
            await queue.start(rank)
            assert await queue.take(None) == (0, {})
        await queue.finished(0, 1)
        waiting = asyncio.create_task(queue.ended(0))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "what a rank of an earlier start finished does not count"
        await queue.finished(0, 0)
        assert await waiting == Ending("done")
        await queue.start(0)  # failures count by stage: this is the first of the second one
        assert await queue.take(None) == (1, {})
        await queue.stumbled("out of memory")
        await queue.start(0)
        assert await queue.take(None) is None
        assert await queue.ended(1) == Ending("failed", "out of memory")

    asyncio.run(story())


def test_a_death_without_a_stage_in_hand_is_no_failure() -> None:
    async def story() -> None:
        queue = StageQueue(1, 0)
        for _ in range(5):
            await queue.start(0)
        await queue.add({})
        assert await queue.take(None) == (0, {})

    asyncio.run(story())


def test_a_refusal_is_of_one_stage_though_all_ranks_say_it() -> None:
    async def story() -> None:
        queue = StageQueue(2, 0)
        numbers = [await queue.add({}) for _ in range(2)]
        waits = [asyncio.create_task(queue.ended(number)) for number in numbers]
        late: asyncio.Task[Any] = asyncio.create_task(queue.take(None))
        assert await late == (0, {})
        for _ in range(2):
            await queue.close(Ending("refused", "no such image"))
        assert [(await wait).how for wait in waits] == ["refused", "lost"]
        assert await queue.take(None) is None

    asyncio.run(story())
