"""Spans of runs: each run of a function is part of the trace in which it was started, in whatever process it runs.

A run that begins by itself, as one of a schedule does, begins a trace of its own. Code of functions may add spans with
OpenTelemetry's API; they lie below the run's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from toque.clusters.telemetry.tracing import TraceContext, active_tracing, current_request, tracer_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["current_position", "failed_span", "run_span", "span"]

_NAME = "toque.functions"


def current_position() -> str | None:
    """Position in the trace of the present work, as a `traceparent` to hand to a run; None where nothing is traced."""
    here = trace.get_current_span().get_span_context()
    if here.is_valid:
        return str(TraceContext(f"{here.trace_id:032x}", f"{here.span_id:016x}", sampled=True))
    request = current_request()
    position = None if request is None else request.keep_for_run()
    return None if position is None else str(position)


@contextmanager
def run_span(name: str, position: str | None, **attributes: Any) -> Iterator[trace.Span]:
    """Make a span for a run within the block, below the position it was started with; an error marks it as failed."""
    tracing = active_tracing()
    if tracing is None or tracing.provider is None:
        yield trace.INVALID_SPAN
        return
    known = {key: value for key, value in attributes.items() if value is not None}
    with tracer_of(_NAME).start_as_current_span(
        name, _below(position), kind=trace.SpanKind.CONSUMER, attributes=known
    ) as made:
        yield made


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """Make a span below the present one, within a block; outside of a run that is traced this does nothing."""
    if not trace.get_current_span().get_span_context().is_valid:
        return nullcontext()
    return tracer_of(_NAME).start_as_current_span(name, attributes=attributes)


def failed_span(made: trace.Span, error: str) -> None:
    """Mark a span as that of work which failed without raising. error: the type of the error."""
    made.set_status(trace.Status(trace.StatusCode.ERROR, error))
    made.set_attribute("error.type", error)


def _below(position: str | None) -> Any:
    """Context of OpenTelemetry below a position; an empty one, where a trace begins, without a position."""
    parent = TraceContext.parse(position)
    if parent is None:
        return otel_context.Context()
    above = trace.SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(1)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(above), otel_context.Context())
