"""What the gateway's routes use: the context of whoever asks, the access list, the label log, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio
from anyio import to_thread

from functions.runtime.context import Context
from ray_apps.gateway.problems import Problem
from registry import Access, Principal

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 128
CONTEXTS_KEPT = 256


class LabelLog(Protocol):
    """Where labels become durable before they are acknowledged."""

    def append(self, payload: bytes) -> int:
        """Keep a record; returns its number."""
        ...


@dataclass
class Services:
    """Everything the routes need; blocking work goes through `run`.

    context: the platform's; labels: opens the label log when first needed, for it starts a thread;
    discover: imports the functions, on first use, for it takes seconds; wait_s: how long a synchronous call of a durable invocation waits before it answers 202.
    """

    context: Context
    labels: Callable[[], LabelLog]
    access: Access | None = None
    discover: Callable[[], object] = lambda: None
    wait_s: float = 60.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _discovering: threading.Lock = field(default_factory=threading.Lock)
    _discovered: bool = False

    def __post_init__(self) -> None:
        self._acting = lru_cache(CONTEXTS_KEPT)(self._context_for)

    def acting(self, principal: Principal) -> Context:
        """The platform's context with `principal` as the actor of whatever is written."""
        return self._acting(principal.name)

    @cached_property
    def door(self) -> Access:
        """The access list."""
        return self.access or Access(self.context.store, actor=self.context.actor)

    @property
    def label_log(self) -> LabelLog:
        """The label log, opened once."""
        with self._lock:
            if not hasattr(self, "_label_log"):
                self._label_log = self.labels()
            return self._label_log

    def catalogue(self) -> None:
        """Have every function declared; the first call imports them, others wait for it. May block."""
        if not self._discovered:
            with self._discovering:
                if not self._discovered:
                    self.discover()
                    self._discovered = True

    async def ready(self) -> None:
        """Have every function declared, without holding up the event loop.

        Raises: Problem 503 with the reason why they cannot be imported.
        """
        if not self._discovered:
            try:
                await self.run(self.catalogue)
            except Exception as error:  # whatever the user's modules raise when they are imported
                told = f"the functions cannot be imported: {type(error).__name__}: {error}"
                raise Problem(503, told, kind="functions-missing", headers={"Retry-After": "1"}) from error

    @cached_property
    def _limiter(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(THREADS)

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do blocking `work` in a thread, so that the event loop goes on."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._limiter)

    def _context_for(self, actor: str) -> Context:
        return replace(self.context, actor=actor)


def services_of(request: Any) -> Services:
    """The services of the application that a request came to."""
    services: Services = request.app.state.services
    return services
