"""Decoding in a service: bounded pixels at a time, callers that leave, and memory that is given back."""

import asyncio
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.polling import eventually
from zrelay_shared.callers import Caller, set_current_caller
from zrelay_shared.errors import Cancelled
from zrelay_shared.security.permissions import CALLER
from zrelay_shared.service.decoding import DecodePool, Decoding, PixelBudget

pytestmark = pytest.mark.hostile


def stays() -> None:
    """The check of a caller that stays."""


def test_the_pixels_that_are_decoded_at_the_same_time_are_bounded() -> None:
    budget, most, lock = PixelBudget(100), 0, threading.Lock()

    def decode(pixels: int) -> None:
        nonlocal most
        with budget.reserved(pixels, stays), lock:
            most = max(most, budget.used)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(decode, [10, 60, 100, 35, 90, 1, 500] * 40))
    assert most <= 100 and budget.used == 0


def test_a_picture_larger_than_the_budget_is_decoded_alone() -> None:
    budget = PixelBudget(100)
    with budget.reserved(1000, stays):
        assert budget.used == 100
    with budget.reserved(40, stays), budget.reserved(60, stays):
        assert budget.used == 100


async def test_large_pictures_are_not_passed_by_small_ones() -> None:
    budget, order = PixelBudget(100), list[int]()

    def decode(pixels: int) -> None:
        with budget.reserved(pixels, stays):
            order.append(pixels)

    with ThreadPoolExecutor(3) as pool:
        with budget.reserved(60, stays):
            large = pool.submit(decode, 100)
            await eventually(lambda: budget.waiting == 1, "the large picture waits")
            small = [pool.submit(decode, pixels) for pixels in (10, 11)]
            await eventually(lambda: budget.waiting == 3, "the small pictures wait behind it")
            assert order == []
        for each in (large, *small):
            each.result()
    assert order[0] == 100


def test_a_caller_that_has_left_does_not_wait() -> None:
    budget = PixelBudget(100)
    decoding = Decoding(budget)
    decoding.leave()
    with budget.reserved(100, stays), pytest.raises(Cancelled), decoding.reserved(1):
        raise AssertionError("the caller has left")
    assert (budget.used, budget.waiting) == (0, 0)


async def test_waiting_work_of_a_caller_that_has_left_never_runs() -> None:
    pool, release, ran = DecodePool(threads=1), threading.Event(), list[str]()
    running = asyncio.create_task(pool.run(lambda decoding: release.wait()))
    waiting = asyncio.create_task(pool.run(lambda decoding: ran.append("left")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert await running and await pool.run(lambda decoding: ran) == []
    pool.close()


async def test_running_work_learns_that_its_caller_has_left() -> None:
    pool, begun = DecodePool(threads=1), threading.Event()

    def work(decoding: Decoding) -> None:
        begun.set()
        while not decoding.cancelled():
            pass

    left = asyncio.create_task(pool.run(work))
    await eventually(begun.is_set, "the work runs")
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert await pool.run(lambda decoding: decoding.cancelled()) is False
    pool.close()


async def test_callers_take_turns() -> None:
    pool, release, order = DecodePool(threads=1), threading.Event(), list[str]()
    running = asyncio.create_task(pool.run(lambda decoding: release.wait()))
    await asyncio.sleep(0)

    async def decode(caller: str, name: str) -> None:
        set_current_caller(Caller(caller, CALLER))
        await pool.run(lambda decoding: order.append(name))

    waiting = [asyncio.create_task(decode(name[0], name)) for name in ("a1", "a2", "a3", "b1", "b2")]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(running, *waiting, return_exceptions=True)
    assert order == ["a1", "b1", "b2", "a3"], "the turn of a2, which was cancelled, was taken by nobody"
    pool.close()


async def test_work_that_waits_when_the_pool_closes_is_dropped() -> None:
    pool, release = DecodePool(threads=1), threading.Event()
    running = asyncio.create_task(pool.run(lambda decoding: release.wait()))
    waiting = asyncio.create_task(pool.run(lambda decoding: None))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(pool.close))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await closing
    assert await running


_DECODE = """
import asyncio, sys
from tests.helpers.hostile_pictures import jpeg_of_scans
from zrelay_shared.pictures import open_picture
from zrelay_shared.service.decoding import DecodePool
from zrelay_shared.service.process import keep_large_buffers

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

def decode(decoding):
    file = open_picture(data, max_pixels=1 << 25, field="image")
    with decoding.reserved(file.pixels):
        return file.decode(decoding.cancelled).getpixel((0, 0))

async def main():
    pool = DecodePool(threads=4)
    await asyncio.gather(*(pool.run(decode) for _ in range(8)))

keep_large_buffers()
data = jpeg_of_scans(4096, 3)
before = resident()
asyncio.run(main())
print(resident() - before)
"""


@pytest.mark.deep
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide themselves")
def test_the_memory_of_large_pictures_is_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", _DECODE], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 110, "MiB; without it, 8 pictures of 16 megapixels leave 200"
