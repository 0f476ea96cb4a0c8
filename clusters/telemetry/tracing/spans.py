"""Ids that were given away before their span was made, and a count of the spans that were sent."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from prometheus_client import Counter

__all__ = ["ChosenIds", "Counted", "chosen_ids"]

_chosen: ContextVar[tuple[int, int] | None] = ContextVar("toque_span_ids", default=None)


class ChosenIds(RandomIdGenerator):
    """Generator of ids that gives the ids of a request's trace to its span, and random ones to all others."""

    def generate_span_id(self) -> int:
        """Give the chosen id of the span that is being made, else a random one."""
        chosen = _chosen.get()
        return super().generate_span_id() if chosen is None else chosen[1]

    def generate_trace_id(self) -> int:
        """Give the chosen id of the trace that begins here, else a random one."""
        chosen = _chosen.get()
        return super().generate_trace_id() if chosen is None else chosen[0]


class Counted(SpanExporter):
    """Exporter that counts which spans another one brought to the collector, by outcome."""

    def __init__(self, exporter: SpanExporter, spans: Counter) -> None:
        self._exporter, self._spans = exporter, spans

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, and count them."""
        result = self._exporter.export(spans)
        self._spans.labels("sent" if result is SpanExportResult.SUCCESS else "lost").inc(len(spans))
        return result

    def shutdown(self) -> None:
        """End the exporter that does the sending."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what the exporter holds."""
        return self._exporter.force_flush(timeout_millis)


@contextmanager
def chosen_ids(trace_id: str, span_id: str) -> Iterator[None]:
    """Give these ids, in hexadecimal digits, to the span that is made within the block."""
    token = _chosen.set((int(trace_id, 16), int(span_id, 16)))
    try:
        yield
    finally:
        _chosen.reset(token)
