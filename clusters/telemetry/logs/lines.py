"""Formatters of log records, and the handlers that use them: everything that this process logs, on standard error.

A record's own fields are passed as `extra={"fields": {…}}`; in a JSON line they stand beside the message, in a line for
people they are in the message already.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from typing import Any, TextIO

import orjson

from toque.clusters.telemetry.identity import current_identity
from toque.clusters.telemetry.logs.access import ACCESS_LOGGER
from toque.clusters.telemetry.logs.redaction import Mask, redact
from toque.clusters.telemetry.logs.settings import LogSettings

__all__ = ["HumanLines", "JsonLines", "set_up_logs"]

SERVE_LOGGER = "ray.serve"
"""Logger of Ray Serve's replicas, which does not pass its records on to the root."""


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
