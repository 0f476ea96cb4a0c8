"""Log lines of this process: their form and settings, credentials masked, the access log, and whose work a line is of.

A record's own fields are passed as `extra={"fields": {…}}`; in a JSON line they stand beside the message, in a line
for people they are in the message already.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from typing import Any, Final, Literal, Protocol, Self, TextIO, cast

import orjson

SERVE_LOGGER = "ray.serve"
"""Logger of Ray Serve's replicas, which does not pass its records on to the root."""
ACCESS_LOGGER = "toque.access"
_SERVER_FAULT = 500  # the status from which on the server failed
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
Mask = Callable[[str], str]
"""Replaces further secrets in a text, such as those that this process has given to functions."""


class _Lines(logging.Formatter):
    """Base of the two formatters. role: of this process, as in "gateway"; masks: see `redact`."""

    def __init__(self, role: str, masks: Sequence[Mask] = ()) -> None:
        super().__init__()
        self._role, self._masks = role, tuple(masks)

    def _text(self, record: logging.LogRecord) -> str:
        return redact(record.getMessage(), self._masks)

    def _trace_back(self, record: logging.LogRecord) -> str | None:
        if record.exc_info and record.exc_info[0] is not None:
            # Not `formatException`, which prints: Serve replaces `print` by one that writes tuples.
            text = "".join(traceback.format_exception(*record.exc_info))
            return redact(text.rstrip("\n"), self._masks)
        return None


class JsonLines(_Lines):
    """Formatter that makes one JSON object of a record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with the trace and request that it belongs to."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "pid": record.process,
            "logger": record.name,
            "message": self._text(record),
        }
        document |= {name: value for name, value in current_identity().items() if value}
        fields: dict[str, Any] = getattr(record, "fields", {})
        for name, value in fields.items():
            document[name] = redact(value, self._masks) if isinstance(value, str) else value
        if (trace_back := self._trace_back(record)) is not None:
            document["exception"] = trace_back
        return orjson.dumps(document, default=str).decode()


class HumanLines(_Lines):
    """Formatter that makes a line for people of a record; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with the trace and request that it belongs to at the end."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        ids = {**current_identity(), **getattr(record, "fields", {})}
        shown = "".join(f" {name}={ids[name]}" for name in ("trace_id", "request_id") if ids.get(name))
        line = f"{at} {record.levelname} {self._role} {record.name}: {self._text(record)}{redact(shown, self._masks)}"
        trace_back = self._trace_back(record)
        return line if trace_back is None else f"{line}\n{trace_back}"


def set_up_logs(
    role: str, settings: LogSettings, masks: Sequence[Mask] = (), *, stream: TextIO | None = None
) -> None:
    """Give the records of this process one form, in a handler of the root logger and in those that Ray Serve made.

    A root logger that has handlers keeps them as they are: whoever made them chose.
    stream: where records go, by default standard error, which Ray keeps for each process.
    """
    lines = JsonLines(role, masks) if settings.form == "json" else HumanLines(role, masks)
    root = logging.getLogger()
    if not root.handlers:
        # Not `sys.stderr`, which Serve may have turned into a logger.
        made = logging.StreamHandler(stream or sys.__stderr__)
        made.addFilter(lambda record: record.levelno >= settings.level or record.name == ACCESS_LOGGER)
        made.setFormatter(lines)
        root.addHandler(made)
    if settings.level < root.level:
        root.setLevel(settings.level)
    for handler in logging.getLogger(SERVE_LOGGER).handlers:
        target: logging.Handler | None = handler
        if isinstance(handler, MemoryHandler):
            # Serve keeps a thousand lines below an error in memory: warnings were read days later, or died with the replica.
            handler.flushLevel = logging.WARNING
            target = handler.target
        if isinstance(target, logging.StreamHandler):  # files are such, too
            target.setFormatter(lines)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Form and least level of the lines, and the share of requests that the access log has.

    access: 0 writes no access log; above 0 every request that the server failed is in it, whatever the share.
    """

    form: Literal["human", "json"] = "human"
    level: int = logging.WARNING
    access: float = 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read `TOQUE_LOG_FORMAT`, `TOQUE_LOG_LEVEL` and `TOQUE_ACCESS_LOG`. Raises: ValueError, naming the variable."""
        level = environment.get("TOQUE_LOG_LEVEL") or "warning"
        if level not in LEVELS:
            raise ValueError(f"TOQUE_LOG_LEVEL={level!r}: choose from {', '.join(LEVELS)}")
        form, access = environment.get("TOQUE_LOG_FORMAT") or "human", environment.get("TOQUE_ACCESS_LOG")
        if form not in {"human", "json"}:
            raise ValueError(f"TOQUE_LOG_FORMAT={form!r}: lines are 'human' or 'json'")
        share = float(access) if access else 0.0
        if not 0 <= share <= 1:
            raise ValueError(f"TOQUE_ACCESS_LOG={access}: the share of requests to log is from 0 to 1")
        return cls(cast("Literal['human', 'json']", form), LEVELS[level], share)


MASK: Final = "***"
_MASKED_NAMES = (
    r"(?:[\w-]*(?:password|passwd|secret|token(?!s)|api[_-]?key|access[_-]?key|credential|signature)[\w-]*)"
)
_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # Headers, as text or as the repr of bytes: the name stays, and of a pair the scheme goes with what follows.
    (
        re.compile(
            r"((?:proxy-)?authorization\\*[\"']?\s*[:=,]\s*(?:b(?=[\"']))?\\*[\"']?)(?:\w+\s+)?[^\s\"',;)}\]\\]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (
        re.compile(r"(cookie\\*[\"']?\s*[:=,]\s*(?:b(?=[\"']))?\\*[\"']?)[^\"'\n\\]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer)\s+[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\btq_[0-9a-z]{1,32}_[A-Za-z0-9_-]{4,128}"), MASK),  # a token of the platform
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), MASK),  # a JWT
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), MASK),  # an AWS key id
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/@\"'<>]*@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(
            rf"\b({_MASKED_NAMES}\\*[\"']?\s*[:=]\s*(?:b(?=[\"']))?\\*[\"']?)[^\s\"',;&)}}\]\\]{{4,}}",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)
_HINTS: Final = re.compile(
    r"auth|cookie|bearer|tq_|eyJ|AKIA|://|passw|secret|token|key|credential|signature", re.IGNORECASE
)


def redact(text: str, masks: Iterable[Mask] = ()) -> str:
    """Replace everything in `text` that looks like a credential by `***`; the rest stays readable.

    masks: applied first, for secrets that only their owner can tell.
    """
    for mask in masks:
        text = mask(text)
    if _HINTS.search(text) is None:  # of nearly every line: one search instead of seven
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class AccessLog:
    """Writes answered requests as log records at level INFO. share: of the requests that succeed or are refused."""

    def __init__(self, share: float, *, chance: random.Random | None = None) -> None:
        self._share, self._chance = share, chance or random.Random()
        self._logger = logging.getLogger(ACCESS_LOGGER)
        self._logger.setLevel(logging.INFO)

    def write(self, method: str, path: str, status: int, duration_s: float, **fields: object) -> None:
        """Write one request, or leave it out by chance; path: without the query, which may hold a secret."""
        if status < _SERVER_FAULT and self._chance.random() >= self._share:
            return
        known = {name: value for name, value in fields.items() if value not in (None, "")}
        known |= {"method": method, "path": path, "status": status, "duration_ms": round(duration_s * 1e3, 3)}
        self._logger.info("%s %s %d %.1f ms", method, path, status, duration_s * 1e3, extra={"fields": known})


class Identified(Protocol):
    """Work that can say which trace and request it is part of."""

    def identity(self) -> dict[str, str]:
        """Ids by name: `trace_id`, `request_id`, empty where there is none."""
        ...


current_work: ContextVar[Identified | None] = ContextVar("toque_work", default=None)
"""What the present task or thread works on; the door that takes a request sets it."""


def current_identity() -> dict[str, str]:
    """Ids of the present work: those of a request at a door, else those of the OpenTelemetry span that is active."""
    work = current_work.get()
    if work is not None:
        return work.identity()
    from opentelemetry import trace  # late: a process that never logs need not import it

    span = trace.get_current_span().get_span_context()
    return {"trace_id": f"{span.trace_id:032x}"} if span.is_valid else {}


__all__ = [
    "ACCESS_LOGGER",
    "LEVELS",
    "MASK",
    "AccessLog",
    "HumanLines",
    "Identified",
    "JsonLines",
    "LogSettings",
    "Mask",
    "current_identity",
    "current_work",
    "redact",
    "set_up_logs",
]
