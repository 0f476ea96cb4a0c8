"""The tracing of this process: what decides, and where spans go. Until it is set up, nothing is kept or sent.

Tail sampling in the process that answered: failed and slow requests are kept, and a share of the rest. The share is
decided by the trace id alone, so all processes keep the same traces. How many are kept each second is bounded: when
everything fails, the first of them tell why, and a failure must not cost more than an answer.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from prometheus_client import Counter

from toque.clusters.telemetry.logs import AccessLog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

EXPORT_EVERY_MS = 5_000  # an export costs milliseconds, however few its spans
QUEUE_SPANS, BATCH_SPANS = 4_096, 512
SEND_WITHIN_S = 2.0  # the first one opens a connection, on a busy machine in more than half a second
DEFAULT_SHARE, DEFAULT_SLOW_MS = 0.01, 500.0
KEPT_PER_S: Final = 50.0
"""Requests that one process keeps a second, on average; twice as many at once."""
_RANDOM_DIGITS: Final = 14
"""Last digits of a trace id, which are random by W3C's Trace Context, level 2."""
Kept = Literal["failed", "slow", "sampled", "caller"]
"""Why a request is kept; "caller": the process that sent it keeps its own part of the trace."""

REQUESTS = Counter(
    "toque_traced_requests",
    "Requests that were kept, by why (failed, slow, caller, sampled), and `dropped`, those beyond what a process keeps a second.",
    ("kept",),
)
SPANS = Counter(
    "toque_spans", "Spans that the collector took (`sent`), and that it did not (`lost`).", ("outcome",)
)


class Tracing:
    """What this process does with requests and runs that are traced.

    keeper: decides which requests are kept; None: none is. access: log of the requests, or None. provider: takes spans, None if there is
    no collector; tracer: makes those of requests.
    """

    def __init__(
        self,
        keeper: Keeper | None,
        *,
        access: AccessLog | None = None,
        provider: TracerProvider | None = None,
    ) -> None:
        self.keeper, self.access, self.provider = keeper, access, provider
        self.tracer = None if provider is None else provider.get_tracer("toque.requests")


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

    from toque.clusters.telemetry.tracing.spans import ChosenIds, Counted  # late: as above

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
            Counted(exporter, SPANS),
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=EXPORT_EVERY_MS,
            max_export_batch_size=BATCH_SPANS,
        )
    )
    return provider


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Which requests are kept, and where their spans go.

    share: of the requests that neither failed nor were slow, from 0 to 1. slow_s: from which duration on a request is slow.
    endpoint: base URL of a collector, "" for none. headers: sent to it, such as a key.
    """

    share: float = DEFAULT_SHARE
    slow_s: float = DEFAULT_SLOW_MS / 1e3
    endpoint: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Read the variables of the profile's section `traces`; None if there is neither an endpoint nor a share.

        Raises: ValueError, naming the variable.
        """
        endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
        share = environment.get("TOQUE_TRACE_SHARE")
        if not endpoint and not share:
            return None
        if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
            raise ValueError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint!r}: want the URL of a collector that takes OTLP over HTTP, as in "
                "http://collector:4318"
            )
        file = environment.get("TOQUE_TRACE_HEADERS_FILE")
        text = Path(file).read_text() if file else environment.get("OTEL_EXPORTER_OTLP_HEADERS") or ""
        slow_ms = _number("TOQUE_TRACE_SLOW_MS", environment.get("TOQUE_TRACE_SLOW_MS"), DEFAULT_SLOW_MS)
        chosen = _number("TOQUE_TRACE_SHARE", share, DEFAULT_SHARE)
        if not 0 <= chosen <= 1:
            raise ValueError(f"TOQUE_TRACE_SHARE={share}: the share of requests to keep is from 0 to 1")
        return cls(chosen, slow_ms / 1e3, endpoint, tuple(_headers(text)))


def _number(name: str, text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name}={text!r}: want a number") from None


def _headers(text: str) -> list[tuple[str, str]]:
    """Parse headers as OpenTelemetry writes them: `name=value`, by commas or lines, percent-encoded."""
    pairs = (item.partition("=") for item in text.replace("\n", ",").split(",") if item.strip())
    return [(unquote(name.strip()).lower(), unquote(value.strip())) for name, _, value in pairs]


class Keeper:
    """Decides which requests of a process are kept. share, slow_s: see `TraceSettings`; clock: seconds that pass."""

    def __init__(
        self,
        share: float,
        slow_s: float,
        *,
        kept_per_s: float = KEPT_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share, self.slow_s = share, slow_s
        self._below = int(share * 16**_RANDOM_DIGITS)
        self._rate, self._clock = kept_per_s, clock
        self._room, self._at = 2 * kept_per_s, clock()

    def is_sampled(self, trace_id: str) -> bool:
        """Whether a trace belongs to the share that is kept however its requests end."""
        return self._below > 0 and int(trace_id[-_RANDOM_DIGITS:], 16) < self._below

    def decide(self, trace_id: str, *, by_caller: bool, failed: bool, duration_s: float) -> Kept | None:
        """Say why a request is kept, or None if it is not.

        by_caller: whether the caller's `traceparent` says that it keeps its part.
        """
        reason: Kept
        if failed:
            reason = "failed"
        elif duration_s >= self.slow_s:
            reason = "slow"
        elif by_caller:
            reason = "caller"
        elif self.is_sampled(trace_id):
            reason = "sampled"
        else:
            return None
        if self._take():
            REQUESTS.labels(reason).inc()
            return reason
        REQUESTS.labels("dropped").inc()
        return None

    def _take(self) -> bool:
        now = self._clock()
        self._room = min(2 * self._rate, self._room + (now - self._at) * self._rate)
        self._at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True


__all__ = [
    "DEFAULT_SHARE",
    "KEPT_PER_S",
    "REQUESTS",
    "SPANS",
    "Keeper",
    "Kept",
    "TraceSettings",
    "Tracing",
    "active_tracing",
    "flush_spans",
    "is_tracing",
    "set_up_tracing",
    "tracer_of",
    "use_tracing",
]
