"""What can go wrong with a function, one class per thing a caller would do differently."""

# ruff: noqa: N818  # the names say what happened: `except TimedOut` reads better than `except TimedOutError`

from __future__ import annotations

from typing import Any


class FunctionError(Exception):
    """Base of everything the function runtime raises on its own account."""


class DeclarationError(FunctionError, TypeError):
    """The function cannot be declared this way; raised at import."""


class UnknownFunction(FunctionError, LookupError):
    """No function of this name is declared in the modules that were imported."""


class InvalidArguments(FunctionError, ValueError):
    """The arguments do not fit the signature; `problems` lists field, kind (as pydantic names it), message and value."""

    def __init__(self, message: str, problems: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []

    def __reduce__(self) -> tuple[type[InvalidArguments], tuple[str, list[dict[str, Any]]]]:
        return type(self), (str(self), self.problems)


class InvalidResult(FunctionError, TypeError):
    """The function returned something its declared return type cannot carry."""


class TimedOut(FunctionError, TimeoutError):
    """The work ran past its `timeout_s` and was killed."""


class Cancelled(FunctionError):
    """The work was cancelled before it ended."""


class WorkerLost(FunctionError):
    """The process that ran the work died: killed, out of memory, or its node left."""


class MissingSecret(FunctionError, LookupError):
    """A secret that the function declares is not there, or too short to be kept out of logs."""


class UndeclaredSecret(FunctionError, LookupError):
    """The body asks for a secret that the function does not declare."""


class SecretLeaked(FunctionError, ValueError):
    """A value that would be stored has a secret in it."""


class RemoteError(FunctionError):
    """The function raised something that cannot travel; carries its type, message and traceback as text."""


class UnknownInvocation(FunctionError, LookupError):
    """No invocation of this id was ever accepted."""


class KeyConflict(FunctionError, ValueError):
    """The idempotency key was used before with other arguments."""


class InvocationFailed(FunctionError):
    """A durable invocation ended dead; its error and traceback are in the message."""


class OverQuota(FunctionError):
    """An experiment asks for more than a quota of its team, or of everyone, even alone."""


class CodeChanged(FunctionError):
    """A workflow with recorded steps cannot go on, for its code is no longer the one it began with."""


class StepMismatch(FunctionError):
    """On replay a workflow asked for another step than the recorded one: it is not deterministic."""
