"""Identity of the work that this process is doing: the trace and the request that a log line belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["Identified", "current_identity", "current_work"]


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
