"""Decorator `@function` and the declared functions: they run here, remotely, in parallel, or durably.

A declared function is called as before: `embed("a")` runs here and now. `embed.remote("a")` runs it on the
cluster, or in a thread where there is none; `embed.map(["a", "b"])` fans out; `embed.submit("a")` records it
in the store, where it is retried and resumed until it has ended.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context, context, unpacked
from toque.functions.runtime.declaration import ONCE, Cron, Demand, OnEvent, Resources, Retries
from toque.functions.runtime.declaration.command import Command, Route, View
from toque.functions.runtime.declaration.options import (
    check_http_types,
    checked_commands,
    checked_options,
    checked_route,
)
from toque.functions.runtime.durable.invocation import Invocation, ledger_of
from toque.functions.runtime.durable.ledger import Origin
from toque.functions.runtime.durable.values import cached_result
from toque.functions.runtime.durable.workflow import current_run, run_step
from toque.functions.runtime.environments import Environment
from toque.functions.runtime.errors import DeclarationError, InvalidArguments, InvalidResult
from toque.functions.runtime.process import enter_worker
from toque.functions.runtime.reference import resolve, travels_by_name
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.declared import DeclaredFunction, Future
from toque.functions.runtime.run.execution import Outcome, attempt, run_to_end, run_with_retries
from toque.functions.runtime.run.forkserver import LocalRun
from toque.functions.runtime.run.interruption import with_deadline
from toque.functions.runtime.run.room import refuse_impossible
from toque.functions.runtime.secret import in_current_context, refuse_secrets, use_secrets
from toque.functions.runtime.signature import Signature
from toque.functions.runtime.telemetry import count_retries, current_position, failed_span, run_span
from toque.registry.access import Role
from toque.registry.code_digest import digests_of, reference

P = ParamSpec("P")
R = TypeVar("R")
CLUSTER_IN_FLIGHT = 2048
LOCAL_IN_FLIGHT = 16


class Function(Generic[P, R]):
    """Declared function, which is called as the function that it decorates.

    reference: "module:qualname"; signature: its types; resources, timeout_s, retries, max_concurrency, cache,
    secrets, warm, in_thread, durable, demand, http, role, command, view, route, admin_for: as declared; schedule, on: its Crons and OnEvents; body: the undecorated function.
    """

    def __init__(
        self,
        body: Callable[..., Any],
        *,
        signature: Signature,
        named: str | None = None,
        digest: str | None = None,
        resources: Resources = Resources(),  # noqa: B008  # frozen
        timeout_s: float | None = None,
        retries: Retries = ONCE,
        max_concurrency: int | None = None,
        cache: bool = False,
        secrets: Sequence[str] = (),
        warm: int = 0,
        in_thread: bool = False,
        durable: bool = True,
        demand: Callable[..., Demand] | None = None,
        schedule: Sequence[Cron] = (),
        on: Sequence[OnEvent] = (),
        http: bool = False,
        role: Role = Role.operator,
        command: Sequence[Command] = (),
        view: View | None = None,
        route: Route | None = None,
        admin_for: Mapping[str, str] | None = None,
    ) -> None:
        functools.update_wrapper(self, body)
        self.body = body
        self.name = body.__name__
        self.doc = inspect.getdoc(body) or ""
        self.reference = named or reference(body)
        self.signature = signature
        self._digest = digest
        self.resources = resources
        self.timeout_s = timeout_s
        self.retries = retries
        self.max_concurrency = max_concurrency
        self.cache = cache
        self.secrets = tuple(secrets)
        self.warm = warm
        self.in_thread = in_thread
        self.durable = durable
        self.demand = demand
        self.schedule = tuple(schedule)
        self.on = tuple(on)
        self.http = http
        self.role = role
        self.command = tuple(command)
        self.view = view
        self.route = route
        self.admin_for = dict(admin_for or {})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run in this thread on validated arguments. Raises: InvalidArguments, and what the body raises."""
        arguments = self.signature.bind(args, kwargs)
        result: R = self._call_with_secrets(arguments) if self.secrets else self.body(**arguments)
        return result

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Start a run on the cluster, or in a thread of this process where Ray is not initialised."""
        return self.start(self.signature.bind(args, kwargs))

    def map(
        self, items: Iterable[Any], *, return_errors: bool = False, in_flight: int | None = None
    ) -> list[R | Exception]:
        """Run once for each item and return the results in the items' order.

        items: each the argument of a function of one parameter; otherwise its first argument, or a mapping or tuple
            of arguments.
        return_errors: put errors into the list instead of raising the first.
        in_flight: runs at a time; by default the declared `max_concurrency`, else 16 here and 2,048 on a cluster.
        """
        arguments = (self.signature.bind_item(item) for item in items)
        return fan_out(
            self.start, arguments, in_flight=in_flight or self.max_concurrency, return_errors=return_errors
        )

    def call_json(self, arguments: Mapping[str, Any]) -> Any:
        """Run here on a JSON object of arguments and return the result's JSON form.

        Raises: InvalidArguments, InvalidResult, and what the body raises.
        """
        outcome = self.attempt(self.signature.load_strictly(arguments), None)
        return self.signature.dump_result(outcome.unwrap())

    def remote_json(self, arguments: Mapping[str, Any]) -> Future[Any]:
        """Start a run on a JSON object of arguments; `signature.dump_result` gives the result's JSON form."""
        return self.start(self.signature.load_strictly(arguments))

    def start(self, arguments: dict[str, Any]) -> Future[R]:
        """Start a run on validated arguments, on the cluster or in a thread. Raises: NoRoom if no node could ever hold it."""
        position = current_position()
        if cluster.running() and not self.in_thread:
            refuse_impossible(self)
            started = self._task.remote(arguments, context().packed(), position)
            return cluster.ClusterRun(self.name, started, timeout_s=self.timeout_s)
        if not self.in_thread:
            cluster.say_if_unconnected()
        job = partial(_attempt_in_trace, self, arguments, context(), position)
        killed_after_s = None if self.in_thread else self.timeout_s
        return LocalRun(
            self.name, job, retries=self.retries, timeout_s=killed_after_s, module=self.body.__module__
        )

    def submit(self, *args: Any, key: str | None = None, **kwargs: Any) -> Invocation[R]:
        """Record a durable invocation in the store, which runs, is retried and resumed until it has ended.

        key: an idempotency key: the same key and arguments give the same invocation.
        Raises: InvalidArguments; KeyConflict if the key was used with other arguments.
        """
        return self.accept(self.signature.bind(args, kwargs), key=key)

    def submit_json(self, arguments: Mapping[str, Any], *, key: str | None = None) -> Invocation[R]:
        """Record a durable invocation on a JSON object of arguments; see `submit`."""
        return self.accept(self.signature.load_strictly(arguments), key=key)

    def accept(self, arguments: dict[str, Any], *, key: str | None = None) -> Invocation[R]:
        """Record a durable invocation on validated arguments; within a durable run that one is its parent.

        Raises: InvalidArguments if the function is declared not to be durable, before anything is stored.
        """
        if not self.durable:
            raise InvalidArguments(
                f"{self.name}: a durable call stores its arguments, which nothing may keep of this function; call it directly, without an "
                "idempotency key"
            )
        run, used = current_run(), context()
        for brought in arguments.values():
            if isinstance(
                brought, Environment
            ):  # here the caller is told at once; who starts it checks again
                used.environments.check(brought, used.workspace)
        origin = Origin(parent=run.id if run else None, chain=used.chain, trace=current_position())
        run_key = run.child_key() if run and key is None else key
        return Invocation(ledger_of(used).submit(self, arguments, key=run_key, origin=origin), used)

    def attempt(
        self, arguments: Mapping[str, Any], used: Context | None, *, body: Callable[..., Any] | None = None
    ) -> Outcome:
        """Run once in this process; `body` replaces the function's own.

        With `cache`, the result for arguments that the same code has run on comes from the store.
        """
        within = self._with_cache(body or self.body)
        return attempt(
            self, partial(self._refusing_secrets, within) if self.secrets else within, arguments, used=used
        )

    @cached_property
    def digest(self) -> str:
        """Version of the code: a sha256 over it and all code that it refers to."""
        return self._digest or self._digests[0]

    @property
    def written_digest(self) -> str:
        """Version of the code by the release before, whose digest was of the code as it is written: results are cached by it."""
        return self._digest or self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        return digests_of(self.body, declared=f"cache={self.cache}")

    @property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments object."""
        return self.signature.input_schema

    @property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result's JSON form."""
        return self.signature.output_schema

    @cached_property
    def _task(self) -> Any:
        return cluster.task(self.name, self._worker_body(), cluster.task_options(self))

    def _worker_body(self) -> Callable[[dict[str, Any], bytes, str | None], Outcome | tuple[Any, int]]:
        def run(arguments: dict[str, Any], used: bytes, position: str | None) -> Outcome | tuple[Any, int]:
            enter_worker(unpacked(used))
            within = with_deadline(self.name, self.body, self.timeout_s)
            run_once = partial(_attempt_in_trace, self, arguments, unpacked(used), position, body=within)
            outcome = run_with_retries(run_once, retries=self.retries)
            count_retries(unpacked(used).workspace, self.name, outcome.attempts - 1)
            return outcome.compact()

        return run

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if travels_by_name(self.body):
            return resolve, (self.reference,)
        return _rebuild, (type(self), self.body, self._options())

    def _with_cache(self, body: Callable[..., Any]) -> Callable[..., Any]:
        return partial(cached_result, self, body) if self.cache else body

    def _refusing_secrets(self, body: Callable[..., Any], /, **arguments: Any) -> Any:
        result = run_to_end(body, arguments)
        with suppress(InvalidResult):  # a result without a JSON form is never stored
            refuse_secrets(json.dumps(self.signature.dump_result(result)), what=f"the result of {self.name}")
        return result

    def _call_with_secrets(self, arguments: dict[str, Any]) -> Any:
        with use_secrets(self.name, self.secrets, context().find_secret):
            result = self.body(**arguments)
            return in_current_context(result) if inspect.isgenerator(result) else result

    def _options(self) -> dict[str, Any]:
        names = [*inspect.signature(Function.__init__).parameters][2:]  # after itself and its body
        own = {"signature": self.signature, "named": self.reference, "digest": self.digest}
        return {name: getattr(self, name, None) for name in names} | own

    def __repr__(self) -> str:
        return f"<function {self.reference}>"


class AsyncFunction(Function[P, R]):
    """Declared `async def` function: calling it returns a coroutine, running it elsewhere the result."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """Start the body as a coroutine, which the caller awaits."""
        return self._awaited(self.signature.bind(args, kwargs))

    async def _awaited(self, arguments: dict[str, Any]) -> R:
        with use_secrets(self.name, self.secrets, context().find_secret):
            result: R = await self.body(**arguments)
            return result


def _attempt_in_trace(
    function: DeclaredFunction,
    arguments: Mapping[str, Any],
    used: Context,
    position: str | None,
    *,
    body: Callable[..., Any] | None = None,
) -> Outcome:
    """Run a function once below a position in a trace; one that was started outside of any has no span."""
    if position is None:
        return function.attempt(arguments, used, body=body)
    with run_span(f"run {function.name}", position, **{"toque.function": function.reference}) as made:
        outcome = function.attempt(arguments, used, body=body)
        if outcome.error is not None:
            failed_span(made, outcome.error.type)
        return outcome


@overload
def function(body: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncFunction[P, R]: ...
@overload
def function(body: Callable[P, R], /) -> Function[P, R]: ...
@overload
def function(
    *,
    resources: Resources = ...,
    timeout_s: float | None = ...,
    retries: Retries | None = ...,
    max_concurrency: int | None = ...,
    cache: bool = ...,
    secrets: Sequence[str] = ...,
    warm: int = ...,
    in_thread: bool = ...,
    durable: bool = ...,
    demand: Callable[..., Demand] | None = ...,
    schedule: Cron | Sequence[Cron] | None = ...,
    on: OnEvent | Sequence[OnEvent] | None = ...,
    http: bool = ...,
    role: Role | str = ...,
    command: str | Sequence[str] = ...,
    view: View = ...,
    route: str = ...,
    admin_for: Mapping[str, str] = ...,
) -> _Decorator: ...


def function(body: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
    """Declare a function of the platform, as a decorator with or without options.

    resources: CPUs, GPUs and memory of a run on the cluster. timeout_s: a run is killed after this; None
    never kills it. retries: how failed runs are tried again; by default they are not. max_concurrency: runs
    at a time: of durable ones across the cluster, of one `map` otherwise. cache: store results, and return
    the stored one for arguments that the same code has run on. secrets: names of the secrets that the body
    reads by `context().secret(name)`. warm: workers that wait for durable runs with the imports done; 0
    scales to zero. in_thread: a run is a thread of the process that calls or dispatches it, which starts at once and
    is never killed; for functions of the platform that wait for others, with timeouts of their own. durable: whether it may be
    submitted, which stores its arguments; False for one whose arguments nothing may keep. demand: computes
    what a durable run takes of its team's quota from the arguments by name; a run waits for its turn. schedule: one or several Crons; on: one or several OnEvents. http: callable by
    HTTP in the workspaces that see it; by default only Python, schedules and events start it. role: who may
    call it by HTTP: viewer for a function that only reads, operator (the default), approver, or admin. command: words
    of the command line that call it, one or several, as in "rollout end MODEL ACTION". view: how `toque` shows its result.
    route: resource that calls it by HTTP, with the status of its answer if it is not 200, as in "GET /models/{model}/traffic" or
    "POST /tokens 201"; it is then callable by HTTP and answers from a thread. admin_for: arguments that only an admin may
    give, each with what it does in words, as in {"override": "an override of {model}'s policy"}.

    Raises: DeclarationError, at import, for invalid options or types.
    """
    names = sys._getframe(1).f_locals  # noqa: SLF001  # types defined beside the function resolve its annotations
    if body is not None:
        return _declare(body, names, {})
    return lambda target: _declare(target, names, declared)


def call(target: Function[..., R] | str, /, *args: Any, **kwargs: Any) -> R:
    """Run a function, with its retries and timeout, and wait for its result.

    target: the function, or its name. Within a durable run the call is a step: its result is recorded, and
    taken from the record when the run is resumed. Raises: UnknownFunction, InvalidArguments, and what the
    function raises.
    """
    found: DeclaredFunction = catalog.get(target) if isinstance(target, str) else target
    result: R = run_step(found, found.signature.bind(args, kwargs))
    return result


class _Decorator(Protocol):
    @overload
    def __call__(self, body: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncFunction[P, R]: ...
    @overload
    def __call__(self, body: Callable[P, R], /) -> Function[P, R]: ...


def _declare(
    body: Callable[..., Any], names: Mapping[str, Any], declared: Mapping[str, Any]
) -> Function[..., Any]:
    if not inspect.isfunction(body):
        raise DeclarationError(f"@function decorates a function, not {body!r}; put it below other decorators")
    kind = AsyncFunction if inspect.iscoroutinefunction(body) else Function
    signature = Signature.of(body, names=names)
    options = checked_options(body.__name__, declared)
    if options.get("in_thread") and not body.__module__.startswith("toque.functions."):
        raise DeclarationError(
            f"{body.__name__}: in_thread=True and route=… are for the platform's own functions; use warm=1 for a start within "
            "milliseconds"
        )
    if options.get("http"):
        check_http_types(signature)
    options |= {
        "command": checked_commands(signature, options),
        "route": checked_route(signature, options),
    }
    instance: Function[..., Any] = kind(body, signature=signature, **options)
    catalog.declare(instance)
    return instance


def _rebuild(
    kind: type[Function[..., Any]], body: Callable[..., Any], declared: Mapping[str, Any]
) -> Function[..., Any]:
    instance = kind(body, **declared)
    catalog.declare(instance)  # so that this process finds the function of what it submits
    return instance


def fan_out(
    start: Callable[[dict[str, Any]], Future[Any]],
    arguments: Iterable[dict[str, Any]],
    *,
    in_flight: int | None,
    return_errors: bool,
) -> list[Any]:
    """Start a run for each of `arguments`, at most `in_flight` at a time, and collect the results in order.

    Raises: the first error in order, after cancelling the runs in flight, unless `return_errors`.
    """
    limit = in_flight or (CLUSTER_IN_FLIGHT if cluster.running() else LOCAL_IN_FLIGHT)
    started: list[Future[Any]] = []
    results: list[Any] = []
    try:
        for each in arguments:
            if len(started) >= limit:
                half = max(1, limit // 2)
                results += _collect(started[:half], return_errors=return_errors)
                started = started[half:]
            started.append(start(each))
        results += _collect(started, return_errors=return_errors)
    except BaseException:
        cluster.wait_until_sent()
        for run in started:
            run.cancel()
        raise
    return results


def _collect(runs: Sequence[Future[Any]], *, return_errors: bool) -> list[Any]:
    if not runs:
        return []  # Ray would be started to fetch nothing
    outcomes = cluster.outcomes(runs)
    if outcomes is not None:
        return [_value(outcome.unwrap, return_errors=return_errors) for outcome in outcomes]
    return [_value(run.result, return_errors=return_errors) for run in runs]


def _value(read: Callable[[], Any], *, return_errors: bool) -> Any:
    if not return_errors:
        return read()
    try:
        return read()
    except Exception as error:  # noqa: BLE001  # the caller wants errors as values
        return error
