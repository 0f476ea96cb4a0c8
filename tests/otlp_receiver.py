"""A collector of traces: an HTTP server that takes OTLP and keeps the spans that it parsed."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["Receiver", "Span", "receiving"]

_PATH = "/v1/traces"
_FAILED = 2  # OpenTelemetry's STATUS_CODE_ERROR


@dataclass(frozen=True)
class Span:
    """A span as it came over the wire, ids in hexadecimal, times in nanoseconds since 1970."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    failed: bool
    kind: int
    attributes: dict[str, Any]


@dataclass
class Receiver:
    """The spans that have come so far. url: base URL, as the variable OTEL_EXPORTER_OTLP_ENDPOINT wants it; headers: of each request."""

    url: str
    spans: list[Span] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def wait_for(self, wanted: Callable[[list[Span]], bool], within_s: float = 120.0) -> list[Span]:
        """Wait until the spans that came are as wanted, and return them. Raises: TimeoutError, with those that came."""
        deadline = time.monotonic() + within_s
        while not wanted(found := list(self.spans)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{within_s:g} s: {[(each.service, each.name) for each in found]}")
            time.sleep(0.05)
        return found

    def of_trace(self, trace_id: str) -> list[Span]:
        """List the spans of one trace that came so far."""
        return [each for each in self.spans if each.trace_id == trace_id]


@contextlib.contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    """Run a collector on a free port within the block."""
    received = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path != _PATH:
                self.send_error(404, explain=f"{self.path}: this collector takes {_PATH}")
                return
            received.headers.append({name.lower(): value for name, value in self.headers.items()})
            received.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            with contextlib.suppress(ConnectionError):  # a busy machine's exporter did not wait for it
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Keep silent on each request."""

    server = ThreadingHTTPServer((host, 0), Handler)
    received.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(message: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in message.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    service=service,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code == _FAILED,
                    kind=span.kind,
                    attributes=_attributes(span.attributes),
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}
