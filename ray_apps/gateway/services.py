"""Services of the gateway's routes: the caller's context, the access list, label logs, threads, and what is served.

Serve's controller runs on the head, and may not answer while that is away: no page waits for it, and none for the
store. Vectors of texts are asked of the served model in its own application.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Annotated, Any, ParamSpec, Protocol, TypeAlias, TypeVar

import anyio
from anyio import to_thread

from toque.clusters.telemetry.metrics import folder_of_process, node_metrics, together
from toque.featurestore import InvalidRows
from toque.featurestore.vectors import Embed
from toque.functions.runtime.context import Context
from toque.ray_apps.admission import Admitted, admitted_of, allowed
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.model_paths import app_name, pool_app
from toque.ray_apps.oidc import OidcSettings
from toque.registry import Access, ObjectStore, Principal, RegistryError, Role, Unavailable

_ANSWERING = frozenset({"RUNNING", "UNHEALTHY", "DEPLOYING"})  # replicas of before may answer meanwhile
_LANGUAGE_MODELS = "generative"
THREADS = 128
CONTEXTS_KEPT = 256
MAX_LABEL_LOGS = 256  # each has a thread, files and a connection
CHECK_EVERY_S = 1.0
STALE_AFTER_S = 10.0
PATIENCE_S = 30.0  # of a search for the vectors of its text
Viewer: TypeAlias = Annotated[Principal, allowed(Role.viewer)]
Operator: TypeAlias = Annotated[Principal, allowed(Role.operator)]
Admin: TypeAlias = Annotated[Principal, allowed(Role.admin)]
"""Callers by what a route requires of them."""
P = ParamSpec("P")
R = TypeVar("R")


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


def answering_applications() -> frozenset[str] | None:
    """Names of the Serve applications that may answer; None outside a cluster."""
    import ray  # late: as in the routes, it takes seconds

    if not ray.is_initialized():
        return None
    from ray import serve

    applications = serve.status().applications
    return frozenset(name for name, found in applications.items() if found.status in _ANSWERING)


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


class Readiness:
    """Knows whether the store answers, by one read at a time and at most one a second; for one event loop.

    The probes of anybody, who needs no token, cost the store nothing more. monotonic: seconds.
    """

    def __init__(self, store: ObjectStore, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._check: asyncio.Future[None] | None = None
        self._begun_s = self._ended_s = float("-inf")
        self._answers = False

    async def is_ready(self) -> bool:
        """Whether the store answered lately; where nobody has asked for a while, this waits for its answer."""
        now_s = self._monotonic()
        if (self._check is None or self._check.done()) and now_s - self._begun_s >= CHECK_EVERY_S:
            self._begun_s = now_s
            self._check = asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        patience_s = self._begun_s + STALE_AFTER_S - now_s
        if self._is_stale and self._check is not None and patience_s > 0:
            await asyncio.wait([self._check], timeout=patience_s)
        return self._answers and not self._is_stale

    @property
    def _is_stale(self) -> bool:
        return self._monotonic() - self._ended_s >= STALE_AFTER_S

    def _read(self) -> None:
        try:
            self._store.find("health")
        except RegistryError:
            self._answers = False
        else:
            self._answers = True
        self._ended_s = self._monotonic()


class DeployedModels:
    """Tells whether a model is served. One question is asked at a time, at most once in `fresh_s`.

    applications: asks for the names of the applications that may answer. patience_s: how long a request waits for them.
    """

    def __init__(
        self,
        applications: Callable[[], frozenset[str] | None],
        *,
        fresh_s: float = 2.0,
        patience_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._fresh_s, self._patience_s, self._clock = applications, fresh_s, patience_s, clock
        self._asking: asyncio.Future[frozenset[str] | None] | None = None
        self._asked_at = 0.0

    async def tell(self, workspace: str) -> Callable[[str], bool | None]:
        """Make what says of a model of a workspace whether it is served; None where that cannot be told now."""
        names = await self._names()

        def served(model: str) -> bool | None:
            if names is None:
                return None
            if app_name(model, workspace) in names or pool_app(workspace) in names:
                return True
            return None if _LANGUAGE_MODELS in names else False  # it serves those of every workspace by name

        return served

    async def _names(self) -> frozenset[str] | None:
        asking = self._asking
        if asking is None or (asking.done() and self._clock() - self._asked_at >= self._fresh_s):
            self._asked_at = self._clock()
            asking = self._asking = asyncio.get_running_loop().run_in_executor(None, self._ask)
        done, _ = await asyncio.wait({asking}, timeout=self._patience_s)
        return asking.result() if done and asking.exception() is None else None


def embed_by_predictor(context: Context) -> Embed:
    """Make what asks the models that are served in a workspace for vectors; blocks, so for a thread.

    Raises, when it is called: InvalidRows if no such model is served by itself; Problem 503 if it does not answer in time.
    """

    def embed(model: str, texts: Sequence[str]) -> Any:
        from ray import serve  # late: a gateway without a cluster has none
        from ray.serve.exceptions import RayServeException

        try:
            handle = serve.get_app_handle(app_name(model, context.workspace))
        except RayServeException as error:
            raise InvalidRows(
                f"text model {model!r} is not served with an application of its own; deploy it, or search by vector"
            ) from error
        try:
            return handle.embed.remote(list(texts)).result(timeout_s=PATIENCE_S)
        except TimeoutError as error:
            raise Problem(503, f"text model {model!r} did not answer in {PATIENCE_S:.0f} s") from error

    return embed
