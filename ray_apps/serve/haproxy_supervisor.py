"""Keeps a node's HAProxy running: one that was killed is replaced at once, with the routes and replicas it had.

Serve's manager of HAProxy learns of its end by health checks alone, three of which must fail before the manager itself
is replaced: the door is shut for 24 s. Here the manager waits for the end of its process. A manager that was killed
leaves its HAProxy behind, which holds the ports; the next manager's takes over from it. A manager may outlive its node,
whose HAProxy has ended then and stays so. Serve's controller calls
`install`, which RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH names, before it makes its managers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from prometheus_client import Counter

from toque.clusters.profile import apply_profile
from toque.clusters.ray_private import haproxy

__all__ = ["SupervisedManager", "install", "processes_of"]

RESTART_PAUSE_S = 0.2
"""Seconds between two attempts to start HAProxy, as when its ports are taken."""
LOOK_S = 0.5
"""Seconds after which the process to wait for is looked up again: one that a reload replaced may take minutes to end its connections."""
ROUTES_PATIENCE_S = 5.0
"""Seconds for which a HAProxy that was left behind goes on while the routes are not known; it has some."""
RESTARTS = Counter("toque_haproxy_restarts", "HAProxies that ended by themselves and were started again.")
_log = logging.getLogger("ray.serve")
_Manager: Any = haproxy.HAProxyManager.__ray_metadata__.modified_class.__ray_actor_class__


class SupervisedManager(_Manager):  # type: ignore[misc]  # a class that Ray wraps
    """Serve's manager of a node's HAProxy, which replaces a process that ended."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._raylet = os.getppid()
        if left := processes_of(self._haproxy.config_file_path):
            self._haproxy_start_task.cancel()  # it has not begun
            self._haproxy_start_task: asyncio.Task[None] = self.event_loop.create_task(self._take_over(left))
        self._supervision = self.event_loop.create_task(self._supervise())

    async def shutdown(self) -> None:
        """End HAProxy for good, as Serve asks before it kills this actor."""
        self._supervision.cancel()
        await super().shutdown()

    async def _take_over(self, left: Sequence[int]) -> None:
        """Start HAProxy in the place of processes that a killed manager left, once it can have their routes."""
        deadline = time.monotonic() + ROUTES_PATIENCE_S
        while not self._knows_routes() and time.monotonic() < deadline:  # noqa: ASYNC110  # Serve sets flags, no event
            await asyncio.sleep(0.02)
        _log.warning(f"HAProxy takes over from {left}, whose manager is gone.")
        api = self._haproxy
        api._generate_config_file_internal()  # noqa: SLF001  # Serve's `start` with one argument more
        api._proc = await api._start_and_wait_for_haproxy("-sf", *map(str, left))  # noqa: SLF001  # as above

    def _knows_routes(self) -> bool:
        return self._received_target_groups_broadcast and not self._update_pending

    async def _supervise(self) -> None:
        await self._haproxy_start_task
        self._counting = self.event_loop.run_in_executor(None, _keep_series)
        while True:
            process = self._haproxy._proc  # noqa: SLF001  # Serve has no public name for it
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), LOOK_S)
            if process.returncode is None:
                continue
            if os.getppid() != self._raylet:
                return  # the node is gone, and its door with it
            async with self._reload_lock:  # a reload under way replaces the process by itself
                if self._haproxy._proc is process:  # noqa: SLF001  # as above
                    await self._restart(process.returncode)

    async def _restart(self, code: int) -> None:
        _log.error(f"HAProxy ended with code {code}; starting another.")
        RESTARTS.inc()
        try:
            await self._haproxy.start()
        except RuntimeError:
            _log.exception("HAProxy did not start; trying again.")
            await asyncio.sleep(RESTART_PAUSE_S)


def _keep_series() -> None:
    """Count into the node's files from now on; it takes a second, for which HAProxy does not wait."""
    from toque.functions.runtime.process import enter_process  # late: as above

    settings = dict(os.environ)
    apply_profile(settings)
    if "TOQUE_STORE" in settings:
        enter_process("haproxy", store_url=settings["TOQUE_STORE"], environment=settings)


def install() -> None:
    """Let this process's Serve controller make supervised managers."""
    from toque.clusters.ray_private import controller  # late: the controller imports it itself

    controller.HAProxyManager = ray.remote(num_cpus=0)(SupervisedManager)


def processes_of(configuration: str) -> list[int]:
    """List the pids of this machine's processes that were started with a configuration file of HAProxy."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and configuration.encode() in (folder / "cmdline").read_bytes().split(
                b"\0"
            ):
                found.append(int(folder.name))
    return found
