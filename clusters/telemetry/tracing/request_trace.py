"""Trace of one request: when each stage of it ended, and its position in W3C's Trace Context, header `traceparent`.

A stage is kept as two numbers until it is known whether anybody wants spans.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, Final

from toque.clusters.telemetry.logs import current_work
from toque.clusters.telemetry.tracing.active import Kept, active_tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_HEADER: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_SAMPLED: Final = 1
_FAULT = 500  # the status from which on the server failed
_ID_DIGITS = 32  # of a trace
_MAX_PATH = 200  # characters of it in a span
_MAX_ID = 128  # characters of a caller's request id that stand in a log line


class RequestTrace:
    """Request at a door of this process: its stages so far, and what it turned out to be about.

    headers: of the request. stages: each with its end, in seconds after the beginning; it began where the one before ended.
    trace_id: of the caller's trace, else of one that begins here. prediction_id, model, version, arm: once they are known.
    kept: why spans are made of it, None while nothing speaks for it. attributes: further ones of its span.
    """

    trace_id: str | None = None
    parent: TraceContext | None = None
    prediction_id: str | None = None
    model: str | None = None
    version: int | None = None
    arm: str | None = None
    kept: Kept | None = None
    _span_id: str | None = None
    _is_read = False
    _is_chosen: bool | None = None  # by the share, or by the caller

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self.headers = headers
        tracing = active_tracing()
        self._tracing = tracing
        self._keeper = None if tracing is None else tracing.keeper
        self.stages: list[tuple[str, float]] = []
        self.attributes: dict[str, Any] = {}
        self.began_ns = time_ns()
        self._began = perf_counter()

    def mark(self, stage: str) -> None:
        """Note that a stage ends now."""
        self.stages.append((stage, perf_counter() - self._began))

    def elapsed_s(self) -> float:
        """Seconds since the request came in."""
        return perf_counter() - self._began

    @property
    def span_id(self) -> str:
        """Id of this process's span of the request, made when it is first asked for."""
        if self._span_id is None:
            self._span_id = new_span_id()
        return self._span_id

    def answered_by(
        self, prediction_id: str, model: str, version: int, arm: str, *, id_made_here: bool
    ) -> None:
        """Note the prediction that answers the request. The trace that begins here has its id too, if that was made here: the 32 digits with which it ends."""
        self.prediction_id, self.model, self.version, self.arm = prediction_id, model, version, arm
        if id_made_here and self.trace_id is None and b"traceparent" not in self.headers:
            self.trace_id = prediction_id[-_ID_DIGITS:]  # `chatcmpl-` stands before those of an answer

    def identity(self) -> dict[str, str]:
        """Ids of this request for a log line; a request without an id of its caller's has its trace's."""
        trace_id = self._trace_of()
        sent = self.headers.get(b"x-request-id", b"")[:_MAX_ID].decode("latin-1")
        return {
            "trace_id": trace_id,
            "request_id": sent or trace_id,
            "prediction_id": self.prediction_id or "",
        }

    def context(self) -> TraceContext:
        """Position that is handed to a process which works for this request: its span, and whether it will be kept."""
        trace_id, keeper = self._trace_of(), self._keeper
        sampled = self.kept is not None or (self.parent is not None and self.parent.sampled)
        sampled = sampled or (keeper is not None and keeper.is_sampled(trace_id))
        return TraceContext(trace_id, self.span_id, sampled)

    def keep_for_run(self) -> TraceContext | None:
        """Keep this request, since a run of a function begins with it; returns its position, None without tracing."""
        if self._keeper is None:
            return None
        self._trace_of()
        self.kept = self.kept or "sampled"
        return self.context()

    def decide(self, status: int) -> Kept | None:
        """Decide whether this request is kept, by its status and the time that it has taken; a decision stays."""
        keeper = self._keeper
        if self.kept is not None or keeper is None:
            return self.kept
        duration_s = self.elapsed_s()
        if self._is_chosen is None:
            trace_id = self._trace_of()
            by_caller = self.parent is not None and self.parent.sampled
            self._is_chosen = by_caller or keeper.is_sampled(trace_id)
        if not self._is_chosen and status < _FAULT and duration_s < keeper.slow_s:  # nearly every request
            return None
        by_caller = self.parent is not None and self.parent.sampled
        self.kept = keeper.decide(
            self._trace_of(), by_caller=by_caller, failed=status >= _FAULT, duration_s=duration_s
        )
        return self.kept

    def row(self, status: int = 200) -> tuple[str, str | None] | None:
        """Make what the prediction's row has of this trace: its id and, of a kept request, the stages as JSON.

        None without tracing, and for a request that nobody has a trace of.
        """
        if self._keeper is None:
            return None
        kept = self.decide(status)
        if kept is None:
            return (self._trace_of(), None) if self.parent is not None else None
        stages = [[name, round(end * 1e6)] for name, end in self.stages]
        document = {
            "span": self.span_id,
            "parent": self.parent.span_id if self.parent is not None else None,
            "kept": kept,
            "began_us": self.began_ns // 1_000,
            "stages_us": stages,
        }
        return self._trace_of(), json.dumps(document, separators=(",", ":"))

    def finish(
        self, method: str, path: str, status: int, *, route: str | None = None, caller: str = ""
    ) -> None:
        """End the request: write its line of the access log, and make its spans if it is kept.

        route: its path as a pattern, which names the span; by default the path. caller: who asked, by name.
        """
        tracing = self._tracing
        if tracing is None:
            return
        if tracing.access is not None:
            ids = self.identity() | {"model": self.model, "version": self.version, "arm": self.arm}
            tracing.access.write(method, path, status, self.elapsed_s(), caller=caller, **ids)
        if self.decide(status) is not None:
            self._export(tracing.tracer, f"{method} {route or path}", path, status)

    def _export(self, tracer: Tracer | None, name: str, path: str, status: int) -> None:
        """Make the spans of the kept request that is over: one for the door, and below it one for each stage."""
        if tracer is None:
            return
        from opentelemetry import trace  # late: with a collector only, as all that follow
        from opentelemetry.context import Context

        from toque.clusters.telemetry.tracing.spans import chosen_ids

        trace_id, parent = self._trace_of(), self.parent
        above = Context()  # an empty one: the request is no part of what runs now
        if parent is not None:
            caller = trace.SpanContext(
                int(trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(1)
            )
            above = trace.set_span_in_context(trace.NonRecordingSpan(caller), above)
        began_ns, end_ns = self.began_ns, self.began_ns + int(self.elapsed_s() * 1e9)
        attributes = self._attributes(path, status)
        with chosen_ids(trace_id, self.span_id):
            door = tracer.start_span(
                name, above, kind=trace.SpanKind.SERVER, attributes=attributes, start_time=began_ns
            )
        below = trace.set_span_in_context(door, Context())
        for stage, end_s in self.stages:
            ended_ns = self.began_ns + int(end_s * 1e9)
            tracer.start_span(stage, below, start_time=began_ns).end(ended_ns)
            began_ns = ended_ns
        if self.kept == "failed":
            door.set_status(trace.Status(trace.StatusCode.ERROR))
        door.end(end_ns)

    def _attributes(self, path: str, status: int) -> dict[str, Any]:
        attributes = {
            "http.response.status_code": status,
            "url.path": path[:_MAX_PATH],
            "toque.kept": self.kept,
            "toque.prediction.id": self.prediction_id,
            "toque.model.name": self.model,
            "toque.model.version": self.version,
            "toque.arm": self.arm,
            "error.type": str(status) if status >= _FAULT else None,
        }
        return {name: value for name, value in attributes.items() if value is not None} | self.attributes

    def _trace_of(self) -> str:
        """The trace id, with the caller's `traceparent` read when it is first needed."""
        if not self._is_read:
            self._is_read = True
            self.parent = TraceContext.parse(self.headers.get(b"traceparent"))
            if self.parent is not None:
                self.trace_id = self.parent.trace_id
        if self.trace_id is None:
            self.trace_id = new_trace_id()
        return self.trace_id


def begin_request(headers: Mapping[bytes, bytes]) -> RequestTrace:
    """Begin the trace of a request, which is from now on what the present task works on."""
    trace = RequestTrace(headers)
    current_work.set(trace)
    return trace


def mark(stage: str) -> None:
    """Note that a stage of the request that the present task works on ends now; outside of one this does nothing."""
    work = current_work.get()
    if isinstance(work, RequestTrace):
        work.mark(stage)


def current_request() -> RequestTrace | None:
    """Find the request that the present task works on; None outside of one."""
    work = current_work.get()
    return work if isinstance(work, RequestTrace) else None


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Span of another process that this one's work belongs to. sampled: whether that process keeps it."""

    trace_id: str
    span_id: str
    sampled: bool

    @classmethod
    def parse(cls, header: bytes | str | None) -> TraceContext | None:
        """Parse a `traceparent`; None without one, and for one that the standard tells to ignore.

        Source: W3C Trace Context, level 1, section 3.2.
        """
        if header is None:
            return None
        found = _HEADER.fullmatch(header.encode("latin-1", "replace") if isinstance(header, str) else header)
        if found is None or (found[1] == b"00" and found[5] is not None):
            return None
        return cls(found[2].decode(), found[3].decode(), bool(int(found[4], 16) & _SAMPLED))

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"


def new_trace_id() -> str:
    """Make an id for a trace that begins here: 32 random hexadecimal digits."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """Make an id for a span: 16 random hexadecimal digits, not all zero."""
    return f"{int.from_bytes(os.urandom(8), 'big') or 1:016x}"


__all__ = [
    "RequestTrace",
    "TraceContext",
    "begin_request",
    "current_request",
    "mark",
    "new_span_id",
    "new_trace_id",
]
