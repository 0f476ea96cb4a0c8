"""The tracing of this process: what decides, and where spans go. Until it is set up, nothing is kept and nothing is sent."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from toque.clusters.telemetry.logs.access import AccessLog
from toque.clusters.telemetry.tracing.keeping import Keeper
from toque.clusters.telemetry.tracing.settings import TraceSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

    from toque.clusters.telemetry.tracing.request_trace import RequestTrace

__all__ = [
    "Tracing",
    "active_tracing",
    "flush_spans",
    "is_tracing",
    "set_up_tracing",
    "tracer_of",
    "use_tracing",
]

EXPORT_EVERY_MS = 5_000  # an export costs milliseconds, however few its spans
QUEUE_SPANS, BATCH_SPANS = 4_096, 512
SEND_WITHIN_S = 2.0  # the first one opens a connection, on a busy machine in more than half a second
_MAX_PATH = 200
_FAULT = 500


class Tracing:
    """What this process does with requests and runs that are traced.

    keeper: decides which requests are kept; None: none is. access: log of the requests, or None. provider: takes spans, None if there is
    no collector.
    """

    def __init__(
        self,
        keeper: Keeper | None,
        *,
        access: AccessLog | None = None,
        provider: TracerProvider | None = None,
    ) -> None:
        self.keeper, self.access, self.provider = keeper, access, provider
        self._tracer = None if provider is None else provider.get_tracer("toque.requests")

    def export_request(self, request: RequestTrace, name: str, path: str, status: int) -> None:
        """Make the spans of a kept request: one for the door, and below it one for each stage."""
        if self._tracer is None:
            return
        from toque.clusters.telemetry.tracing.spans import export_request  # late: with a collector only

        attributes = {
            "http.response.status_code": status,
            "url.path": path[:_MAX_PATH],
            "toque.kept": request.kept,
            "toque.prediction.id": request.prediction_id,
            "toque.model.name": request.model,
            "toque.model.version": request.version,
            "toque.arm": request.arm,
            "error.type": str(status) if status >= _FAULT else None,
        }
        known = {key: value for key, value in attributes.items() if value is not None}
        export_request(self._tracer, request, name, known | request.attributes)


class _Process:
    """Holder of this process's tracing: an object, since digests of functions follow constants that code names."""

    tracing: Tracing | None = None


_process = _Process()


def active_tracing() -> Tracing | None:
    """Find the tracing of this process; None until it is set up."""
    return _process.tracing


def is_tracing() -> bool:
    """Whether requests of this process are judged, and may be kept."""
    return _process.tracing is not None and _process.tracing.keeper is not None


@contextmanager
def use_tracing(tracing: Tracing | None) -> Iterator[None]:
    """Replace the tracing of this process within the block, for tests."""
    before, _process.tracing = _process.tracing, tracing
    try:
        yield
    finally:
        _process.tracing = before


def set_up_tracing(
    role: str, settings: TraceSettings | None, *, access: AccessLog | None = None, cluster: str = "toque"
) -> None:
    """Set up the tracing of this process, once; without settings only the access log counts.

    role: of the process, which names its service. cluster: name of the platform, an attribute of every span.
    """
    if settings is None:
        if access is not None:
            _process.tracing = Tracing(None, access=access)
        return
    provider = _provider(role, settings, cluster) if settings.endpoint else None
    _process.tracing = Tracing(Keeper(settings.share, settings.slow_s), access=access, provider=provider)


def tracer_of(name: str) -> Tracer:
    """Get a tracer for spans of this process; one that makes none if there is no collector."""
    from opentelemetry import trace  # late: with a run only

    tracing = _process.tracing
    if tracing is None or tracing.provider is None:
        return trace.NoOpTracer()
    return tracing.provider.get_tracer(name)


def flush_spans(timeout_s: float = SEND_WITHIN_S) -> None:
    """Send the spans that wait, before a process ends; gives up when the exporter does, as of a collector that is away."""
    tracing = _process.tracing
    if tracing is not None and tracing.provider is not None:
        flushing = threading.Thread(target=tracing.provider.force_flush, name="flush-spans", daemon=True)
        flushing.start()
        flushing.join(timeout_s)


def _provider(role: str, settings: TraceSettings, cluster: str) -> TracerProvider:
    """Make the provider whose spans go to the collector, in batches from a thread."""
    from opentelemetry import trace  # late: with a collector only, as all that follow
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(
        endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces",
        headers=dict(settings.headers),
        timeout=SEND_WITHIN_S,
    )
    provider = provider_of(role, exporter, cluster)
    trace.set_tracer_provider(provider)  # for code of users, which knows OpenTelemetry's API
    return provider


def provider_of(role: str, exporter: SpanExporter, cluster: str = "toque") -> TracerProvider:
    """Make a provider that sends its spans to `exporter`, named as OpenTelemetry's conventions want it."""
    from opentelemetry.sdk.resources import Resource  # late: as above
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from toque.clusters.telemetry.tracing.spans import ChosenIds, Counted

    named: dict[str, Any] = {
        "service.name": f"toque-{role.partition('/')[0]}",
        "service.namespace": cluster,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    provider = TracerProvider(resource=Resource.create(named), id_generator=ChosenIds())
    provider.add_span_processor(
        BatchSpanProcessor(
            Counted(exporter),
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=EXPORT_EVERY_MS,
            max_export_batch_size=BATCH_SPANS,
        )
    )
    return provider
