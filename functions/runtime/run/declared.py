"""What running a declared function needs to know of it: the protocol that `Function` fulfils.

The catalog, the executor and the workers are written against it, so that they do not depend on how functions are declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from functions.runtime.context import Context
from functions.runtime.declaration import Cron, Demand, OnEvent, Resources, Retries
from functions.runtime.future import Future
from functions.runtime.run.execution import Outcome
from functions.runtime.signature import Signature


class DeclaredFunction(Protocol):
    """A function as it was declared, and the two ways to run it; see `functions.runtime.function.Function`."""

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
    demand: Callable[..., Demand] | None
    schedule: tuple[Cron, ...]
    on: tuple[OnEvent, ...]

    @property
    def digest(self) -> str:
        """The version of the function's code."""

    @property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""

    @property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result."""

    def start(self, arguments: dict[str, Any]) -> Future[Any]:
        """Start a run on validated arguments, here or on the cluster."""

    def attempt(
        self, arguments: Mapping[str, Any], used: Context | None, *, body: Callable[..., Any] | None = None
    ) -> Outcome:
        """Run once in this process; `body` stands in for the function's own."""

    def __hash__(self) -> int: ...

    def call_json(self, arguments: Mapping[str, Any]) -> Any:
        """Run here on a JSON object of arguments; the result in its JSON form."""

    def remote_json(self, arguments: Mapping[str, Any]) -> Future[Any]:
        """Start a run on a JSON object of arguments."""

    def submit_json(self, arguments: Mapping[str, Any], *, key: str | None = None) -> Any:
        """Record a durable invocation; the result is its `Invocation`, a type of the room above this one."""
