"""Which process of HAProxy the manager waits for, without Serve: the one that takes connections now."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from toque.ray_apps.serve import haproxy_supervisor
from toque.ray_apps.serve.haproxy_supervisor import SupervisedManager


class Process:
    """A process that ends when it is told to."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def end(self) -> None:
        self.returncode = -9
        self._ended.set()

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode


class Api:
    """HAProxy as Serve starts it; a start puts another process in the place of the one before."""

    def __init__(self) -> None:
        self._proc = Process()
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1
        self._proc = Process()


@pytest.fixture
async def manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(haproxy_supervisor, "LOOK_S", 0.01)
    monkeypatch.setattr(haproxy_supervisor, "_keep_series", lambda: None)
    made: Any = SupervisedManager.__new__(SupervisedManager)
    made._haproxy, made._reload_lock = Api(), asyncio.Lock()
    made._raylet, made.event_loop = haproxy_supervisor.os.getppid(), asyncio.get_running_loop()
    made._haproxy_start_task = asyncio.ensure_future(asyncio.sleep(0))
    supervision = asyncio.ensure_future(made._supervise())
    await asyncio.sleep(0.05)
    yield made
    supervision.cancel()
    await asyncio.gather(supervision, return_exceptions=True)


async def started(api: Api, count: int) -> None:
    async with asyncio.timeout(60):
        while api.starts < count:  # noqa: ASYNC110  # a counter, no event
            await asyncio.sleep(0.01)


async def test_one_that_ends_is_started_again_each_time(manager: Any) -> None:
    for count in (1, 2):
        manager._haproxy._proc.end()
        await started(manager._haproxy, count)


@pytest.mark.parametrize("reloads", [1, 3])
async def test_one_that_ends_while_its_predecessors_still_have_connections_is_started_again(
    manager: Any, reloads: int
) -> None:
    before = []
    for _ in range(reloads):
        before.append(manager._haproxy._proc)
        manager._haproxy._proc = Process()  # as a reload does
    manager._haproxy._proc.end()
    await started(manager._haproxy, 1)
    running = manager._haproxy._proc
    for process in before:
        process.end()
    await asyncio.sleep(0.1)  # nothing to wait for: that nothing is started is what is seen
    assert (manager._haproxy._proc, manager._haproxy.starts) == (running, 1)
