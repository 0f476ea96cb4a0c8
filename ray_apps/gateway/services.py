"""Services of the gateway's routes: the caller's context, the access list, the label logs, worker threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio
from anyio import to_thread

from toque.clusters.telemetry.metrics import folder_of_process, node_metrics, together
from toque.featurestore.vectors import Embed
from toque.functions.runtime.context import Context
from toque.ray_apps.admission import Admitted, admitted_of
from toque.ray_apps.gateway.deployed import DeployedModels, answering_applications
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.readiness import Readiness
from toque.ray_apps.oidc import OidcSettings
from toque.registry import Access, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 128
CONTEXTS_KEPT = 256
MAX_LABEL_LOGS = 256  # each has a thread, files and a connection


class LabelLog(Protocol):
    """A log in which labels are in Redis, too, before they are acknowledged."""

    def commit(self, payloads: Sequence[bytes]) -> int:
        """Append records, all or none, and wait for Redis to have them; returns the number of the last.

        Raises: PredictionLogError if it does not in time.
        """
        ...


def metrics_of_node() -> bytes:
    """Render the series of this node alone, for a gateway outside of a cluster."""
    return together(node_metrics(folder_of_process(), node=os.uname().nodename))


@dataclass
class Services:
    """Everything the routes need; blocking work goes through `run`.

    context: the platform's own; labels: opens the label log of a workspace, called on first use as it starts a thread;
    access: tokens and workspaces, by default those of the store; discover: imports the functions, called on first use
    as it takes seconds; wait_s: how long a synchronous call of a durable invocation waits before it answers 202; oidc:
    issuer whose tokens are accepted beside those of the list; metrics: renders the series of all nodes; embed: makes for a
    workspace what asks its models for the vectors of texts. applications: names those of Serve that may answer.
    """

    context: Context
    labels: Callable[[str], LabelLog]
    access: InitVar[Access | None] = None
    discover: Callable[[], object] = lambda: None
    wait_s: float = 60.0
    metrics: Callable[[], bytes] = metrics_of_node
    embed: Callable[[Context], Embed] | None = None
    oidc: OidcSettings | None = None
    applications: Callable[[], frozenset[str] | None] = answering_applications
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _discovering: threading.Lock = field(default_factory=threading.Lock)
    _discovered: bool = False
    _label_logs: dict[str, LabelLog] = field(default_factory=dict)

    def __post_init__(self, access: Access | None) -> None:
        self.access_list = access or Access(self.context.store, actor=self.context.actor)
        self.readiness = Readiness(self.context.store)
        self.deployed = DeployedModels(self.applications)
        self._workspaces = lru_cache(CONTEXTS_KEPT)(self.context.in_workspace)
        self._contexts = lru_cache(CONTEXTS_KEPT)(self._context_of_actor)

    def context_of(self, admitted: Admitted) -> Context:
        """Get the context of a request's workspace, with its caller as the actor of everything written."""
        return self._contexts(admitted.principal.name, admitted.workspace)

    def label_log(self, workspace: str) -> LabelLog:
        """Get the log of a workspace's labels, opened on first use. Raises: Unavailable if too many are open."""
        with self._lock:
            if workspace not in self._label_logs:
                if len(self._label_logs) >= MAX_LABEL_LOGS:
                    raise Unavailable(
                        f"this gateway takes labels of {MAX_LABEL_LOGS} workspaces and not of {workspace!r}: "
                        "try again, for another replica may have room"
                    )
                self._label_logs[workspace] = self.labels(workspace)
            return self._label_logs[workspace]

    def catalogue(self) -> None:
        """Import every function's module once; further calls wait for the first. Blocks for seconds."""
        if not self._discovered:
            with self._discovering:
                if not self._discovered:
                    self.discover()
                    self._discovered = True

    async def ready(self) -> None:
        """Wait until every function is declared, without blocking the event loop.

        Raises: Problem 503 with the reason why they cannot be imported.
        """
        if not self._discovered:
            try:
                await self.run(self.catalogue)
            except Exception as error:  # whatever the user's modules raise when they are imported
                reason = f"the functions cannot be imported: {type(error).__name__}: {error}"
                raise Problem(503, reason, kind="functions-missing", headers={"Retry-After": "1"}) from error

    @cached_property
    def _limiter(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(THREADS)

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run blocking `work` in a thread, so that the event loop goes on."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._limiter)

    def _context_of_actor(self, actor: str, workspace: str) -> Context:
        return self._workspaces(workspace).as_actor(actor)


def services_of(request: Any) -> Services:
    """Get the services of the application that received a request."""
    services: Services = request.app.state.services
    return services


async def context_of(request: Any) -> Context:
    """Get the context of an admitted request: its workspace's, with its caller as the actor."""
    services, admitted = services_of(request), admitted_of(request)
    if admitted.workspace == services.context.workspace:
        return services.context_of(admitted)
    return await services.run(services.context_of, admitted)  # opening a store takes a while
