"""Execution of one run: call a body to its end, with retries, and describe how it ended.

Threads, child processes and Ray workers all run this code, so that they behave alike.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from toque.functions.runtime.context import Context, context, use_context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.errors import FunctionError, RemoteError, WorkerLost
from toque.functions.runtime.run.log import captured, log_text
from toque.functions.runtime.secret import contains_secret, redact, use_secrets
from toque.functions.runtime.telemetry import RUN_SECONDS, RUNS
from toque.registry.times import CHANCE


class RunPolicy(Protocol):
    """Options of a declared function that its runs depend on."""

    name: str
    retries: Retries
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """Text of an error: type name, message and traceback; and whether it may be retried.

    lost: the worker died; how far the run came is unknown.
    """

    type: str
    message: str
    traceback: str
    retryable: bool
    lost: bool = False

    @classmethod
    def of(cls, error: BaseException, *, retries: Retries) -> ErrorRecord:
        """Describe `error`, secrets masked; the runtime's own errors are never retried, timeouts excepted."""
        text = redact("".join(traceback.format_exception(error)))
        retryable = retries.covers(error) and (
            not isinstance(error, FunctionError) or isinstance(error, TimeoutError)
        )
        message = redact(str(error))
        return cls(type(error).__qualname__, message, text, retryable, lost=isinstance(error, WorkerLost))

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Value or error of a run that ended. raised: the pickled error, if it can be pickled."""

    value: Any = None
    error: ErrorRecord | None = None
    raised: bytes | None = None
    attempts: int = 1

    def unwrap(self) -> Any:
        """Return the value of the run. Raises: the error that ended the run, or RemoteError with its text."""
        if self.error is None:
            return self.value
        cause = RemoteError(f"{self.error}\n\n{self.error.traceback}", self.error.type)
        if self.raised is None:
            raise cause
        # The bytes come from our own worker process, never from stored data.
        raise pickle.loads(self.raised) from cause  # noqa: S301

    def compact(self) -> Outcome | tuple[Any, int]:
        """Convert a success to a plain pair, which pickles faster than the object."""
        return (self.value, self.attempts) if self.error is None else self

    @classmethod
    def of(cls, compacted: Outcome | tuple[Any, int]) -> Outcome:
        """Make the outcome from its compact form."""
        return cls(compacted[0], attempts=compacted[1]) if isinstance(compacted, tuple) else compacted

    @classmethod
    def failed(cls, error: BaseException, *, retries: Retries, attempts: int = 1) -> Outcome:
        """Make the outcome of a run that raised `error`."""
        return cls(error=ErrorRecord.of(error, retries=retries), raised=_pickled(error), attempts=attempts)


def attempt(
    policy: RunPolicy, body: Callable[..., Any], arguments: Mapping[str, Any], *, used: Context | None
) -> Outcome:
    """Run `body(**arguments)` once, within the context `used` if given."""
    with (
        use_context(used) if used else nullcontext(),
        captured(policy.name, secrets=policy.secrets),
        _counted(context().workspace, policy.name) as ended,
    ):
        try:
            with use_secrets(policy.name, policy.secrets, context().find_secret):
                found = Outcome(run_to_end(body, arguments))
        except Exception as error:  # noqa: BLE001  # any error of the user's code is the outcome
            failed = Outcome.failed(error, retries=policy.retries)
            log_text(failed.error.traceback if failed.error else "")
            return failed
        ended("succeeded")
        return found


@contextmanager
def _counted(workspace: str, name: str) -> Iterator[Callable[[str], None]]:
    """Count and time a run; one that does not say how it ended has failed."""
    begun, outcomes = time.perf_counter(), ["failed"]
    try:
        yield outcomes.append
    except BaseException:  # such as a workflow that waits for a step
        outcomes.append("interrupted")
        raise
    finally:
        RUNS.labels(workspace, name, outcomes[-1]).inc()
        RUN_SECONDS.labels(workspace, name).observe(time.perf_counter() - begun)


def run_with_retries(
    once: Callable[[], Outcome], *, retries: Retries, pause: Callable[[float], Any] = time.sleep
) -> Outcome:
    """Run `once` until it succeeds or `retries` is exhausted; a lost worker counts against `max_lost` only."""
    attempts, lost = 0, 0
    while True:
        outcome = once()
        if outcome.error is None:
            return replace(outcome, attempts=attempts + lost + 1)
        if outcome.error.lost:
            lost += 1
        else:
            attempts += 1
        exhausted = lost > retries.max_lost if outcome.error.lost else attempts >= retries.max_attempts
        if exhausted or not (outcome.error.retryable or outcome.error.lost):
            return replace(outcome, attempts=attempts + lost)
        pause(retries.backoff(max(attempts, 1), draw=CHANCE.random()))


def run_to_end(body: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call `body` to its end: await a coroutine, collect a stream into a list."""
    result = body(**arguments)
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    if inspect.isgenerator(result):
        return list(result)
    if inspect.isasyncgen(result):
        return asyncio.run(_collect(result))
    return result


async def _collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301  # our own bytes: some errors pickle but do not unpickle
    except Exception:  # noqa: BLE001  # whatever fails, the error is sent as text only
        return None
    # An error that contains a secret is never sent.
    return None if contains_secret(data.decode(errors="replace")) else data
