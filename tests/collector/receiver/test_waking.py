"""Coroutines that wait for what threads finish."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

from collector.receiver.waking import Bell
from tests.collector.receiver.receiver_fakes import DEADLINE_S


def counted(loop):
    """How often the loop is woken from elsewhere."""
    calls, soon = [], loop.call_soon_threadsafe

    def noted(*args, **kwargs):
        calls.append(args)
        return soon(*args, **kwargs)

    loop.call_soon_threadsafe = noted
    return calls


def finish(futures):
    for future in futures:
        future.set_result(None)


def test_what_is_finished_at_once_wakes_the_loop_once():
    async def waiting():
        bell = Bell()
        futures: list[Future[None]] = [Future() for _ in range(50)]
        calls = counted(asyncio.get_running_loop())
        tasks = [asyncio.ensure_future(bell.wait(future, DEADLINE_S)) for future in futures]
        await asyncio.sleep(0)  # each of them waits now
        done = threading.Thread(target=finish, args=(futures,))
        done.start()
        done.join()  # the loop sees nothing until all are finished
        await asyncio.gather(*tasks)
        return len(calls)

    assert asyncio.run(waiting()) == 1


def test_whoever_waits_again_is_woken_again():
    async def waiting():
        bell = Bell()
        for _ in range(3):
            future: Future[None] = Future()
            threading.Timer(0.001, future.set_result, (None,)).start()
            await bell.wait(future, DEADLINE_S)
        return True

    assert asyncio.run(waiting())


def test_what_is_done_already_is_not_waited_for():
    async def waiting():
        future: Future[None] = Future()
        future.set_result(None)
        await Bell().wait(future, DEADLINE_S)
        return True

    assert asyncio.run(waiting())


def test_what_it_ended_with_is_raised():
    async def waiting():
        future: Future[None] = Future()
        threading.Timer(0.001, future.set_exception, (KeyError("disk"),)).start()
        await Bell().wait(future, DEADLINE_S)

    with pytest.raises(KeyError, match="disk"):
        asyncio.run(waiting())


def test_who_stops_waiting_leaves_the_future_as_it_is():
    async def waiting():
        bell = Bell()
        future: Future[None] = Future()
        with pytest.raises(TimeoutError):
            await bell.wait(future, 0.001)
        assert not future.cancelled()
        future.set_result(None)  # nobody is there any more, and nothing fails
        await asyncio.sleep(0.01)
        return future.result(0)

    assert asyncio.run(waiting()) is None


def test_what_is_finished_when_the_loop_is_gone_disturbs_nobody(caplog):
    future: Future[None] = Future()

    async def waiting():
        with pytest.raises(TimeoutError):
            await Bell().wait(future, 0.001)

    asyncio.run(waiting())
    future.set_result(None)
    assert not caplog.records
