"""One piece of work: run a function to its end, with its retries, and tell how it went.

The same code runs in a thread, a child process and a Ray worker; that is why they agree.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import random
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from functions.runtime.context import Context, context, use_context
from functions.runtime.declaration import Retries
from functions.runtime.errors import FunctionError, RemoteError, WorkerLost
from functions.runtime.run.capture import captured, say
from functions.runtime.secret import redact, revealing, tells


class Task(Protocol):
    """What a function declares of its runs."""

    name: str
    retries: Retries
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as text: the type's name, the message, the traceback, whether it may be tried again.

    lost: the worker vanished; nothing is known of the work.
    """

    type: str
    message: str
    traceback: str
    retryable: bool
    lost: bool = False

    @classmethod
    def of(cls, error: BaseException, *, retries: Retries) -> ErrorRecord:
        """Describe `error`, secrets left out; what the runtime itself refuses is never retried."""
        told = redact("".join(traceback.format_exception(error)))
        retryable = retries.covers(error) and (
            not isinstance(error, FunctionError) or isinstance(error, TimeoutError)
        )
        message = redact(str(error))
        return cls(type(error).__qualname__, message, told, retryable, lost=isinstance(error, WorkerLost))

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece of work ended: its value, or its error as text and, if it can travel, as itself."""

    value: Any = None
    error: ErrorRecord | None = None
    raised: bytes | None = None
    attempts: int = 1

    def unwrap(self) -> Any:
        """The value. Raises: the error that ended the work, else RemoteError that tells of it."""
        if self.error is None:
            return self.value
        told = RemoteError(f"{self.error}\n\n{self.error.traceback}")
        if self.raised is None:
            raise told
        # The bytes come from our own worker process, never from stored data.
        raise pickle.loads(self.raised) from told  # noqa: S301

    def light(self) -> Outcome | tuple[Any, int]:
        """The form in which a success travels: a plain pair, quicker to pack than an object."""
        return (self.value, self.attempts) if self.error is None else self

    @classmethod
    def of(cls, travelled: Outcome | tuple[Any, int]) -> Outcome:
        """The outcome back from its light form."""
        return cls(travelled[0], attempts=travelled[1]) if isinstance(travelled, tuple) else travelled

    @classmethod
    def failed(cls, error: BaseException, *, retries: Retries, attempts: int = 1) -> Outcome:
        """The outcome of work that raised `error`."""
        return cls(error=ErrorRecord.of(error, retries=retries), raised=_portable(error), attempts=attempts)


def attempt(
    task: Task, body: Callable[..., Any], arguments: Mapping[str, Any], *, used: Context | None
) -> Outcome:
    """Run `body(**arguments)` once, within the context `used` if given."""
    with use_context(used) if used else nullcontext(), captured(task.name, secrets=task.secrets):
        try:
            with revealing(task.name, task.secrets, context().find_secret):
                return Outcome(complete(body, arguments))
        except Exception as error:  # noqa: BLE001  # whatever the user's code raises is the outcome
            failed = Outcome.failed(error, retries=task.retries)
            say(failed.error.traceback if failed.error else "")
            return failed


def persist(
    once: Callable[[], Outcome], *, retries: Retries, pause: Callable[[float], Any] = time.sleep
) -> Outcome:
    """Run `once` until it ends well or `retries` is exhausted; a lost worker counts against `max_lost` only."""
    attempts, lost = 0, 0
    while True:
        outcome = once()
        if outcome.error is None:
            return replace(outcome, attempts=attempts + lost + 1)
        if outcome.error.lost:
            lost += 1
        else:
            attempts += 1
        spent = lost > retries.max_lost if outcome.error.lost else attempts >= retries.max_attempts
        if spent or not (outcome.error.retryable or outcome.error.lost):
            return replace(outcome, attempts=attempts + lost)
        pause(retries.backoff(max(attempts, 1), draw=random.random()))


def complete(body: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call `body` and see it through: await a coroutine, drain a stream into a list."""
    result = body(**arguments)
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    if inspect.isgenerator(result):
        return list(result)
    if inspect.isasyncgen(result):
        return asyncio.run(_drain(result))
    return result


async def _drain(stream: Any) -> list[Any]:
    return [item async for item in stream]


def _portable(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301  # our own bytes: an error that pickles may still not unpickle
    except Exception:  # noqa: BLE001  # any failure means the same: it cannot travel, its text does
        return None
    return None if tells(data.decode(errors="replace")) else data  # an error with a secret in it stays here
