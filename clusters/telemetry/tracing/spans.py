"""Spans of a request that is over, made with explicit times; and ids that were given away before their span was made."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from toque.clusters.telemetry.tracing.active import SPANS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from toque.clusters.telemetry.tracing.request_trace import RequestTrace

__all__ = ["ChosenIds", "Counted", "export_request"]

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
    """Exporter that counts which spans another one brought to the collector."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, and count them."""
        result = self._exporter.export(spans)
        SPANS.labels("sent" if result is SpanExportResult.SUCCESS else "lost").inc(len(spans))
        return result

    def shutdown(self) -> None:
        """End the exporter that does the sending."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what the exporter holds."""
        return self._exporter.force_flush(timeout_millis)


def export_request(
    tracer: trace.Tracer, request: RequestTrace, name: str, attributes: dict[str, Any]
) -> None:
    """Make and end the spans of a request: the door's, then one for each of its stages."""
    trace_id, parent = request.context().trace_id, request.parent
    above = Context()  # an empty one: the request is no part of what runs now
    if parent is not None:
        caller = SpanContext(
            int(trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=TraceFlags(1)
        )
        above = trace.set_span_in_context(NonRecordingSpan(caller), above)
    end_ns = request.began_ns + int(request.elapsed_s() * 1e9)
    token = _chosen.set((int(trace_id, 16), int(request.span_id, 16)))
    try:
        door = tracer.start_span(
            name, above, kind=SpanKind.SERVER, attributes=attributes, start_time=request.began_ns
        )
    finally:
        _chosen.reset(token)
    below, began_ns = trace.set_span_in_context(door, Context()), request.began_ns
    for stage, end_s in request.stages:
        ended_ns = request.began_ns + int(end_s * 1e9)
        tracer.start_span(stage, below, start_time=began_ns).end(ended_ns)
        began_ns = ended_ns
    if request.kept == "failed":
        door.set_status(Status(StatusCode.ERROR))
    door.end(end_ns)
