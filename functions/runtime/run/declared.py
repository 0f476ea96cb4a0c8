"""Protocols of declared functions and of runs that were started, as the catalog, the executor and the workers use them.

`toque.functions.runtime.function.Function` fulfils the first; the modules that run functions do not import how they are
declared. A run is in a thread, a process or on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from toque.functions.runtime.context import Context
from toque.functions.runtime.declaration import Cron, Demand, OnEvent, Resources, Retries
from toque.functions.runtime.declaration.command import Command, Route, View
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.signature import Signature
from toque.registry.access import Role

R_co = TypeVar("R_co", covariant=True)


class DeclaredFunction(Protocol):
    """Declared function: its options, its code's version, and the ways to run it."""

    name: str
    doc: str
    reference: str
    body: Callable[..., Any]
    signature: Signature
    resources: Resources
    timeout_s: float | None
    retries: Retries
    max_concurrency: int | None
    cache: bool
    warm: int
    in_thread: bool
    demand: Callable[..., Demand] | None
    schedule: tuple[Cron, ...]
    on: tuple[OnEvent, ...]
    http: bool
    role: Role
    command: tuple[Command, ...]
    view: View | None
    route: Route | None
    admin_for: dict[str, str]

    @property
    def digest(self) -> str:
        """Version of the function's code, a sha256."""

    @property
    def written_digest(self) -> str:
        """Version of the code as it is written, a sha256, as the release before named it."""

    @property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments object."""

    @property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result's JSON form."""

    def start(self, arguments: dict[str, Any]) -> Future[Any]:
        """Start a run on validated arguments, here or on the cluster."""

    def attempt(
        self, arguments: Mapping[str, Any], used: Context | None, *, body: Callable[..., Any] | None = None
    ) -> Outcome:
        """Run once in this process; `body` replaces the function's own."""

    def __hash__(self) -> int: ...

    def call_json(self, arguments: Mapping[str, Any]) -> Any:
        """Run here on a JSON object of arguments and return the result's JSON form."""

    def remote_json(self, arguments: Mapping[str, Any]) -> Future[Any]:
        """Start a run on a JSON object of arguments."""

    def submit_json(self, arguments: Mapping[str, Any], *, key: str | None = None) -> Any:
        """Record a durable invocation and return its `Invocation`, a type of the room above this one."""


@runtime_checkable
class Future(Protocol[R_co]):
    """Handle on a run that was started: its result, whether it ended, cancelling."""

    def result(self, timeout_s: float | None = None) -> R_co:
        """Wait for the result and return it.

        timeout_s: seconds to wait at most. Raises: TimeoutError after them, while the run goes on; the
        function's own error.
        """
        ...

    def done(self) -> bool:
        """Whether the run has ended, with a result or an error."""
        ...

    def cancel(self) -> None:
        """End the run if it still goes on; `result` then raises Cancelled."""
        ...
