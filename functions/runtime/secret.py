"""Secrets of functions: given to a body by name, and kept out of all that the runtime records.

A function declares the names. Each is looked up before the body starts (`Context.find_secret`), so a missing
one is reported at once. A value that this process has disclosed is from then on replaced by `***` in logs,
errors and tracebacks, and a value that would be stored with a secret in it is refused.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from toque.functions.runtime.errors import MissingSecret, SecretLeaked, UndeclaredSecret

MIN_CHARACTERS = 4  # a shorter value cannot be distinguished from ordinary text
MASK = "***"
_MIN_BASE64 = 4  # characters of base64 that no neighbour of the secret changes
_URL_SAFE = str.maketrans("+/", "-_")
_ESCAPED = re.compile(r"%[0-9A-F]{2}")
_PASSWORD = re.compile(
    r"^\w[\w+.-]*://[^/:@]*:(.+)@|(?:password|pwd|token|secret)\s*=\s*([^&;\s]+)", re.IGNORECASE | re.DOTALL
)
_DELIMITERS = re.compile(r"[/?#@:%&;\s]+")
_MIN_LINE_CHARACTERS = 8  # of a line that is masked by itself, in a secret of several lines

_available: ContextVar[Mapping[str, str]] = ContextVar("toque_secrets", default={})  # noqa: B039  # never changed
_disclosed: frozenset[str] = frozenset()  # in this process: threads that a body starts have no context


@contextmanager
def use_secrets(function: str, names: Sequence[str], find: Callable[[str], str | None]) -> Iterator[None]:
    """Let `secret_value` return the secrets `names` of `function`, and no others, within the block.

    find: looks a secret up. Raises: MissingSecret naming the secret and where to put it.
    """
    global _disclosed  # noqa: PLW0603  # one set in each process is meant
    values = {name: _validated(function, name, find(name)) for name in names}
    if not _disclosed.issuperset(values.values()):
        _disclosed = _disclosed.union(values.values())
    token = _available.set(values)
    try:
        yield
    finally:
        _available.reset(token)


def secret_value(name: str) -> str:
    """Return the value of a secret that the running function declares. Raises: UndeclaredSecret."""
    available = _available.get()
    if name not in available:
        declared = ", ".join(available) or "none"
        raise UndeclaredSecret(
            f"no secret {name!r} for this run, which declares {declared}; "
            f'add it to the function: @function(secrets=("{name}",))'
        )
    return available[name]


def in_current_context(stream: Generator[Any, Any, Any]) -> Iterator[Any]:
    """Iterate over a stream in the present context, so that it keeps its secrets after `use_secrets` ends."""
    within, end = copy_context(), object()
    return iter(lambda: within.run(next, stream, end), end)


def redact(text: str) -> str:
    """Replace every secret disclosed in this process by `***`, in any of its usual encodings."""
    return _pattern(_disclosed).sub(MASK, text) if _disclosed else text


def contains_secret(text: str) -> bool:
    """Whether `text` contains a secret that was disclosed in this process."""
    return bool(_disclosed) and _pattern(_disclosed).search(text) is not None


def refuse_secrets(text: str, *, what: str) -> None:
    """Check that `text`, the JSON of `what`, contains no secret of the running function. Raises: SecretLeaked."""
    available = _available.get()
    for name, value in available.items():
        if _pattern(frozenset({value})).search(text):
            raise SecretLeaked(
                f"{what} holds the secret {name}, and would be stored; leave it out, "
                "and let the function that needs it declare the secret itself"
            )


def _validated(function: str, name: str, value: str | None) -> str:
    if value is None:
        raise MissingSecret(
            f"{function} needs the secret {name}, and it is not there; set the environment variable {name} where "
            f"functions run, or put it into a file {name} in the folder that TOQUE_SECRETS names"
        )
    if len(value) < MIN_CHARACTERS:
        raise MissingSecret(
            f"{function}: the secret {name} has {len(value)} characters; give one of at least {MIN_CHARACTERS}, "
            "for a shorter one cannot be kept out of logs"
        )
    return value


@lru_cache(maxsize=64)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    spelled = {form for value in values for text in (value, *_passwords(value)) for form in _encoded(text)}
    return re.compile("|".join(re.escape(each) for each in sorted(spelled, key=len, reverse=True)))


def _passwords(value: str) -> Iterator[str]:
    """Yield the passwords in a URL or a connection string, and the pieces that a parser cuts one into that is not escaped."""
    for match in _PASSWORD.finditer(value):
        password = next(filter(None, match.groups()))
        texts = {password, unquote(password), *_DELIMITERS.split(password)}
        yield from (text for text in texts if len(text) >= MIN_CHARACTERS)


def _encoded(value: str) -> Iterator[str]:
    """Encode a value as code, JSON, URLs, hex and base64 do; and its lines, for text that is cut into lines."""
    written = {value, repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    quoted = {
        encode(text, safe=safe)
        for text in written
        for encode in (quote, quote_plus)
        for safe in ("", "/", "/:?#[]@!$&'()*+,;=~")
    }
    yield from written | quoted | {_ESCAPED.sub(lambda match: match[0].lower(), text) for text in quoted}
    for text in written | quoted:
        yield from _base64_parts(text.encode())
    yield from (value.encode().hex(), value.encode().hex().upper())
    yield from (line for line in value.splitlines() if len(line) >= _MIN_LINE_CHARACTERS)


def _base64_parts(data: bytes) -> Iterator[str]:
    """Encode bytes as base64 has them within longer bytes: after 0, 1 or 2 others, without the characters that neighbours change.

    A part of under `_MIN_BASE64` characters stands in too many other texts.
    """
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        end = (before + len(data)) * 8 // 6
        part = whole[-(-before * 8 // 6) : end]
        if len(part) >= _MIN_BASE64:
            yield from {part, part.translate(_URL_SAFE), quote(part, safe="")}
    yield base64.b64encode(data).decode().rstrip("=")
