"""A coroutine that is run to its first wait at once."""

import asyncio

import pytest

from runnel._redis.begun import begin

pytestmark = pytest.mark.anyio


async def test_it_runs_to_its_first_wait_at_once_and_on_in_a_task() -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    heard = []

    async def work() -> None:
        heard.append("begun")
        heard.append(await first)
        heard.append(await second)

    task = begin(loop, work())
    assert heard == ["begun"]
    first.set_result("first")
    loop.call_soon(second.set_result, "second")
    assert task is not None
    await task
    assert heard == ["begun", "first", "second"]


async def test_what_has_nothing_to_wait_for_needs_no_task() -> None:
    heard = []

    async def work() -> None:
        heard.append("done")

    assert begin(asyncio.get_running_loop(), work()) is None
    assert heard == ["done"]


async def test_a_failure_of_what_it_waits_for_arrives_in_it() -> None:
    loop = asyncio.get_running_loop()
    waits_for = loop.create_future()

    async def work() -> None:
        with pytest.raises(ValueError, match="no"):
            await waits_for
        await asyncio.sleep(0)
        raise KeyError("its own")

    task = begin(loop, work())
    assert task is not None
    waits_for.set_exception(ValueError("no"))
    with pytest.raises(KeyError, match="its own"):
        await task


async def test_cancelling_the_task_cancels_it_where_it_waits() -> None:
    loop = asyncio.get_running_loop()
    waits_for = loop.create_future()
    heard = []

    async def work() -> None:
        try:
            await waits_for
        finally:
            await asyncio.sleep(0)
            heard.append("cleaned up")

    task = begin(loop, work())
    assert task is not None
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waits_for.cancelled()
    assert heard == ["cleaned up"]
