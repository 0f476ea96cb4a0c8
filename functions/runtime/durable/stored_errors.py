"""Form of an error in a journal, from which a replay raises the same error: its class by name, its arguments as JSON, never a pickle."""

from __future__ import annotations

import json
from typing import Any

from toque.functions.runtime.durable.record import Failure, StepFailure
from toque.functions.runtime.durable.values import get_value, put_value
from toque.functions.runtime.errors import FunctionError, RemoteError, SecretLeaked
from toque.functions.runtime.reference import reference, resolve
from toque.functions.runtime.secret import redact
from toque.registry.store import ObjectStore


def put_error(store: ObjectStore, error: Exception) -> StepFailure:
    """Convert an error to its form in an entry; what is not JSON in it, or contains a secret, stays out and its message is enough."""
    message = redact(str(error))
    try:
        content = _content(error)
        raised = put_value(store, content)
    except (TypeError, ValueError, SecretLeaked):
        raised = put_value(store, {"arguments": [message], "state": {}})
    kind = type(error)
    failure = Failure(type=kind.__qualname__, message=message)
    return StepFailure(failure=failure, reference=reference(kind), raised=raised)


def get_error(store: ObjectStore, stored: StepFailure) -> Exception:
    """Make the error again; a RemoteError with its type and message where its class cannot be imported or made."""
    text = f"{stored.failure.type}: {stored.failure.message}"
    try:
        kind = resolve(stored.reference)
        if not issubclass(kind, Exception):
            return RemoteError(text)
        content = get_value(store, stored.raised)
        return _made(kind, content)
    except (FunctionError, TypeError):
        return RemoteError(text)


def is_whole(error: Exception, again: Exception) -> bool:
    """Whether an error that was made again has all that the first one has, so that a body cannot tell them apart."""
    try:
        return type(again) is type(error) and _content(again) == _content(error)
    except (TypeError, ValueError):
        return False


def _content(error: Exception) -> dict[str, Any]:
    """Arguments and state from which a pickle would make the error. Raises: TypeError, ValueError unless they are JSON."""
    made = error.__reduce__()
    if isinstance(made, str) or made[0] is not type(error):
        raise TypeError(f"{type(error).__qualname__} is not made of arguments alone")
    _, arguments, *state = made
    content = {"arguments": list(arguments), "state": state[0] if state else {}}
    if json.loads(json.dumps(content)) != content:
        raise TypeError(f"{type(error).__qualname__} has arguments that JSON changes")
    return content


def _made(kind: type[Exception], content: dict[str, Any]) -> Exception:
    try:
        error = kind(*content["arguments"])
    except Exception:  # noqa: BLE001  # its `__init__` wants more than its arguments: without it
        error = kind.__new__(kind, *content["arguments"])
    error.__dict__.update(content["state"] or {})
    return error
