"""Traces: what a request or a run of a function did, in spans, sent by OTLP to any collector.

A door stamps the stages of every request, which costs well under a microsecond each, and decides when it has answered whether
the request is kept: failed and slow ones are, and a share of the rest. Only of those are spans made. Runs of functions
are few: each has spans, by OpenTelemetry's own API, so that a function's code can add its own.
"""

from toque.clusters.telemetry.tracing.active import (
    Keeper,
    Kept,
    TraceSettings,
    Tracing,
    active_tracing,
    flush_spans,
    is_tracing,
    set_up_tracing,
    tracer_of,
    use_tracing,
)
from toque.clusters.telemetry.tracing.request_trace import (
    RequestTrace,
    TraceContext,
    begin_request,
    current_request,
    mark,
    new_span_id,
    new_trace_id,
)

__all__ = [
    "Keeper",
    "Kept",
    "RequestTrace",
    "TraceContext",
    "TraceSettings",
    "Tracing",
    "active_tracing",
    "begin_request",
    "current_request",
    "flush_spans",
    "is_tracing",
    "mark",
    "new_span_id",
    "new_trace_id",
    "set_up_tracing",
    "tracer_of",
    "use_tracing",
]
