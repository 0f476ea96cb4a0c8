"""Errors of the function runtime, one class for each that a caller would handle differently."""

# ruff: noqa: N818  # the names say what happened: `except TimedOut` reads better than `except TimedOutError`

from __future__ import annotations

from typing import Any


class FunctionError(Exception):
    """Base class of all errors that the function runtime itself raises."""


class DeclarationError(FunctionError, TypeError):
    """Raised at import if a function cannot be declared with these options or types."""


class UnknownFunction(FunctionError, LookupError):
    """Raised if the imported modules declare no function of this name."""


class InvalidArguments(FunctionError, ValueError):
    """Raised if arguments do not fit the signature; `problems` lists field, kind (pydantic's), message, value."""

    def __init__(self, message: str, problems: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []

    def __reduce__(self) -> tuple[type[InvalidArguments], tuple[str, list[dict[str, Any]]]]:
        return type(self), (str(self), self.problems)


class InvalidResult(FunctionError, TypeError):
    """Raised if a function returns a value that does not fit its return type."""


class TimedOut(FunctionError, TimeoutError):
    """Raised if a run passed its `timeout_s` and was killed."""


class Cancelled(FunctionError):
    """Raised if a run was cancelled before it ended."""


class WorkerLost(FunctionError):
    """Raised if the worker process died: killed, out of memory, or its node left."""


class EnvironmentFailed(FunctionError):
    """Raised if a node could not make the environment that a submission brings."""


class NoRoom(FunctionError):
    """Raised if the cluster, and all nodes that could be started, can never hold a run, or the workers of an experiment."""


class MissingSecret(FunctionError, LookupError):
    """Raised if a declared secret is missing, or too short to be kept out of logs."""


class UndeclaredSecret(FunctionError, LookupError):
    """Raised if a body reads a secret that its function does not declare."""


class SecretLeaked(FunctionError, ValueError):
    """Raised if a value that would be stored contains a secret."""


class RemoteError(FunctionError):
    """Raised in place of an error that cannot be pickled or holds a secret, with its type, message and traceback as text.

    kind: name of that error's class.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


class UnknownInvocation(FunctionError, LookupError):
    """Raised if the store has no invocation of this id."""


class KeyConflict(FunctionError, ValueError):
    """Raised if an idempotency key was used before with other arguments."""


class NotDead(FunctionError):
    """Raised if an invocation is redriven or purged that is not among the dead letters."""


class InvocationFailed(FunctionError):
    """Raised if a durable invocation ended dead; the message holds its error and traceback."""


class OverQuota(FunctionError):
    """Raised if an experiment alone exceeds the quota of its team or of everyone."""


class CodeChanged(FunctionError):
    """Raised if a workflow with recorded steps cannot resume, since its code has changed."""


class StepMismatch(FunctionError):
    """Raised if a replayed workflow calls another step than the recorded one: it is not deterministic."""
