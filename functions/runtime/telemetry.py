"""What is measured and traced of functions: Prometheus series of their runs and schedules, and spans.

Each run of a function is part of the trace in which it was started, in whatever process it runs. A run that begins by itself, as one
of a schedule does, begins a trace of its own. Code of functions may add spans with OpenTelemetry's API; they lie below the run's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram

from toque.clusters.telemetry.tracing import TraceContext, active_tracing, current_request, tracer_of

_NAME = "toque.functions"
_FUNCTION = ("workspace", "function")
_BUCKETS_S = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0)

RUNS = Counter("toque_function_runs", "Runs of functions that ended, by outcome.", (*_FUNCTION, "outcome"))
RUN_SECONDS = Histogram("toque_function_run_seconds", "Seconds of a run.", _FUNCTION, buckets=_BUCKETS_S)
QUEUE_SECONDS = Histogram(
    "toque_function_queue_seconds",
    "Seconds that a durable invocation waited since it was due, until a worker claimed it.",
    _FUNCTION,
    buckets=_BUCKETS_S,
)
RETRIES = Counter("toque_function_retries", "Runs that failed and are tried again.", _FUNCTION)
PREEMPTIONS = Counter(
    "toque_function_preemptions",
    "Durable runs that were asked to yield to others, or to a budget's end.",
    _FUNCTION,
)
LOST = Counter("toque_function_lost_workers", "Durable runs whose worker vanished.", _FUNCTION)
DEAD_LETTERS = Counter("toque_function_dead_letters", "Durable invocations that were given up.", _FUNCTION)
WAITING = Gauge(
    "toque_function_waiting",
    "Durable invocations that are due and have no worker or slot.",
    ("workspace",),
    multiprocess_mode="livesum",
)
WORKERS = Gauge(
    "toque_function_workers",
    "Workers that run durable invocations now.",
    ("workspace",),
    multiprocess_mode="livesum",
)
LATENESS = Histogram(
    "toque_schedule_lateness_seconds",
    "Seconds from a schedule's tick until it fired.",
    ("workspace", "schedule"),
    buckets=(0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 86_400.0),
)
SKIPPED = Counter(
    "toque_schedule_skipped_ticks",
    "Ticks that were not fired: missed, or their last run was not over.",
    ("workspace", "schedule"),
)


def count_retries(workspace: str, function: str, count: int) -> None:
    """Count runs that were tried again. A body that Ray's workers get calls it, since a series cannot be pickled."""
    if count:
        RETRIES.labels(workspace, function).inc(count)


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
