"""Waits for records to be confirmed: ended in groups, by time, and not begun where they are in vain."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from toque.functions.prediction_log import log_mode_of
from toque.functions.prediction_log.writing.shipper import Confirmations


async def test_one_report_ends_all_waits_up_to_its_number():
    woken: list[int] = []
    waits = Confirmations(lambda: woken.append(1), timeout_s=30)
    tasks = [asyncio.create_task(waits.wait(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    waits.advance(2)
    assert await asyncio.gather(*tasks[:2]) == [True, True]
    assert not tasks[2].done()
    waits.advance(3)
    assert await tasks[2]
    assert await waits.wait(3)
    assert len(woken) == 3


async def test_redis_away_ends_waits_and_begins_none_until_it_is_back():
    waits = Confirmations(lambda: None, timeout_s=30)
    waiting = asyncio.create_task(waits.wait(1))
    await asyncio.sleep(0)
    waits.fail()
    assert not await waiting
    assert not waits.available
    assert not await waits.wait(2)
    waits.advance(2)
    assert waits.available
    assert await waits.wait(1)


async def test_the_first_wait_in_vain_spares_the_later_ones():
    waits = Confirmations(lambda: None, timeout_s=0.5)
    assert not await waits.wait(1)
    begun = time.monotonic()
    assert [await waits.wait(number) for number in range(2, 50)] == [False] * 48
    assert time.monotonic() - begun < 12  # half of what 48 waits would take


async def test_a_caller_that_leaves_is_no_trouble():
    waits = Confirmations(lambda: None, timeout_s=30)
    gone = asyncio.create_task(waits.wait(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    waits.advance(1)
    assert await waits.wait(1)


def test_threads_wait_too():
    waits = Confirmations(lambda: None, timeout_s=30)
    threading.Timer(0.02, waits.advance, [1]).start()
    assert waits.wait_blocking(1)
    threading.Timer(0.02, waits.fail).start()
    assert not waits.wait_blocking(2)
    assert not waits.wait_blocking(3)


def test_the_name_of_a_mode_is_checked():
    assert log_mode_of("") == "file"
    assert log_mode_of("two_nodes") == "two_nodes"
    with pytest.raises(ValueError, match="TOQUE_LOG_MODE='both': use one of file, redis, two_nodes"):
        log_mode_of("both")
