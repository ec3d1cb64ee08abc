"""The desk of a group of workers: one job at a time, the same for all; what an attempt that is over says counts for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from torch.distributed import DistNetworkError, DistStoreError

from ct.errors import Conflict, Corrupt, TrainingFailed
from ct.training import groups
from ct.training.groups import Desk


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


def test_all_workers_take_the_same_job_and_the_next_one_afterwards() -> None:
    async def story() -> None:
        desk = Desk(limit=3, keep_s=60)
        early = asyncio.create_task(desk.take(1, 0))
        await asyncio.sleep(0)
        assert await desk.give(b"one") == 1
        assert await early == (1, 1, b"one")
        assert await desk.take(0, 0) == (1, 1, b"one")
        answer = asyncio.create_task(desk.answer(1))
        ahead = asyncio.create_task(desk.take(1, 1))
        await desk.done(1, 0, 1, b"weights")
        assert await answer == (b"weights", b"")
        assert await desk.give(b"two") == 2
        assert await ahead == (2, 1, b"two")

    run(story())


def test_a_restarted_group_takes_the_job_again_and_the_old_one_is_not_heard() -> None:
    async def story() -> None:
        desk = Desk(limit=3, keep_s=60)
        await desk.give(b"one")
        assert await desk.take(0, 0) == (1, 1, b"one")
        assert await desk.take(0, 0) == (1, 2, b"one")
        await desk.done(1, 0, 1, b"stale")
        await desk.failed(1, 0, 1, b"stale")
        answer = asyncio.create_task(desk.answer(1))
        await asyncio.sleep(0.01)
        assert not answer.done()
        await desk.done(1, 0, 2, b"weights")
        await desk.failed(1, 0, 2, b"too late")
        assert await answer == (b"weights", b"")

    run(story())


def test_a_job_whose_workers_are_lost_again_and_again_fails() -> None:
    async def story() -> None:
        desk = Desk(limit=3, keep_s=60)
        await desk.give(b"one")
        for attempt in range(1, 5):
            assert await desk.take(0, 0) == (1, attempt, b"one")
        await desk.trouble("OSError: no disk")
        waiting = asyncio.create_task(desk.take(0, 0))
        outcome, error = await desk.answer(1)
        assert outcome == b""
        assert error.endswith(b"its workers were lost 4 times: OSError: no disk")
        await desk.give(b"two")
        assert await waiting == (2, 1, b"two"), "the group is there for the next job"

    run(story())


def test_an_idle_group_goes_home_but_never_from_its_work() -> None:
    async def story() -> None:
        desk = Desk(limit=3, keep_s=0.05)
        await desk.give(b"one")
        await desk.take(0, 0)
        await desk.take(1, 0)
        done = asyncio.create_task(desk.take(1, 1))  # worker 1 has ended, worker 0 works on for long
        await asyncio.sleep(0.3)
        assert not done.done()
        await desk.done(1, 0, 1, b"weights")
        assert await done is None
        assert await desk.take(0, 1) is None
        assert await desk.give(b"two") == 0

    run(story())


def test_a_closed_desk_gives_up_its_job() -> None:
    async def story() -> None:
        desk = Desk(limit=3, keep_s=60)
        await desk.give(b"one")
        await desk.close()
        assert await desk.take(0, 0) is None
        assert (await desk.answer(1))[1].endswith(b"it was given up")

    run(story())


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (IndexError("index out of range"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), True),
        (TrainingFailed("the optimizer"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), False),
        (DistNetworkError("failed to recv, got 0 bytes"), False),
        (DistStoreError("wait timeout after 300000ms"), False),
        (OSError(5, "Input/output error"), False),
        (MemoryError(), False),
        (Conflict("attempt 1 was given up"), False),
        (Corrupt("the checkpoint"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    assert groups._comes_again(error) is again
