"""Secrets by name: given to a body when it asks, and kept out of whatever the runtime records.

A function declares the names. Before its body starts each is looked up (`Context.find_secret`), so a missing one
is told at once. A value that was given out in this process is from then on replaced by `***` in logs, errors and
tracebacks, and a value that would be stored with one in it is refused.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from functions.runtime.errors import MissingSecret, SecretLeaked, UndeclaredSecret

SHORTEST = 4  # characters: a shorter value cannot be told from ordinary text when it is to be hidden
HIDDEN = "***"
_LINE = 8  # characters from which a line of a secret of several lines is hidden by itself

_held: ContextVar[Mapping[str, str]] = ContextVar("toque_secrets", default={})  # noqa: B039  # never changed
_given: frozenset[str] = (
    frozenset()
)  # every value given out in this process: threads of a body have no context


@contextmanager
def revealing(function: str, names: Sequence[str], find: Callable[[str], str | None]) -> Iterator[None]:
    """Let `revealed` answer the secrets `names` of `function`, and no others, within the block.

    find: looks one up. Raises: MissingSecret naming the secret and where to put it.
    """
    values = {name: _checked(function, name, find(name)) for name in names}
    _remember(values)
    token = _held.set(values)
    try:
        yield
    finally:
        _held.reset(token)


def revealed(name: str) -> str:
    """The value of a secret that the running function declares. Raises: UndeclaredSecret."""
    held = _held.get()
    if name not in held:
        declared = ", ".join(held) or "none"
        raise UndeclaredSecret(
            f"no secret {name!r} for this run, which declares {declared}; "
            f'add it to the function: @function(secrets=("{name}",))'
        )
    return held[name]


def in_sight(stream: Generator[Any, Any, Any]) -> Iterator[Any]:
    """The items of a stream that was begun within `revealing` and is read after it."""
    return _stepped(stream, copy_context())


def _stepped(stream: Generator[Any, Any, Any], within: Context) -> Iterator[Any]:
    while True:
        try:
            item = within.run(next, stream)
        except StopIteration:
            return
        yield item


def redact(text: str) -> str:
    """`text` with every secret that this process was given replaced by `***`, in any of its usual spellings."""
    return _pattern(_given).sub(HIDDEN, text) if _given else text


def tells(text: str) -> bool:
    """Whether a secret that this process was given stands in `text`."""
    return bool(_given) and _pattern(_given).search(text) is not None


def refuse_secrets(text: str, *, what: str) -> None:
    """Raises: SecretLeaked if a secret of the running function stands in `text`, the JSON of `what`."""
    held = _held.get()
    for name, value in held.items():
        if _pattern(frozenset({value})).search(text):
            raise SecretLeaked(
                f"{what} holds the secret {name}, and would be stored; leave it out, "
                "and let whoever needs it declare the secret itself"
            )


def _checked(function: str, name: str, value: str | None) -> str:
    if value is None:
        raise MissingSecret(
            f"{function} needs the secret {name}, and it is not there; set the environment variable {name} where "
            f"functions run, or put it into a file {name} in the folder that TOQUE_SECRETS names"
        )
    if len(value) < SHORTEST:
        raise MissingSecret(
            f"{function}: the secret {name} has {len(value)} characters; give one of at least {SHORTEST}, "
            "for a shorter one cannot be kept out of logs"
        )
    return value


def _remember(values: Mapping[str, str]) -> None:
    global _given  # noqa: PLW0603  # one set a process is the point
    if not _given.issuperset(values.values()):
        _given = _given.union(values.values())


@lru_cache(maxsize=64)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    spelled = {form for value in values for form in _spellings(value)}
    return re.compile("|".join(re.escape(each) for each in sorted(spelled, key=len, reverse=True)))


def _spellings(value: str) -> Iterator[str]:
    """A value as code, JSON, a URL and base64 write it; and its lines, for text that is cut into lines."""
    yield value
    yield repr(value)[1:-1]
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield quote(value, safe="")
    yield base64.b64encode(value.encode()).decode().rstrip("=")
    yield from (line for line in value.splitlines() if len(line) >= _LINE)
