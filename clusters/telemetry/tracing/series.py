"""Series of what becomes of traces: why requests were kept, how many were dropped, and whether the collector took the spans."""

from __future__ import annotations

from prometheus_client import Counter

__all__ = ["REQUESTS", "SPANS"]

REQUESTS = Counter(
    "toque_traced_requests",
    "Requests that were kept, by why (failed, slow, caller, sampled), and `dropped`, those beyond what a process keeps a second.",
    ("kept",),
)
SPANS = Counter(
    "toque_spans", "Spans that the collector took (`sent`), and that it did not (`lost`).", ("outcome",)
)
