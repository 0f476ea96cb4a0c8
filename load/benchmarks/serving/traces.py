"""Benchmark of traces: a predictor without them, and one that keeps a share of the requests and sends their spans, in turns.

As `toque.load.benchmarks.serving.prediction_log` measures, both with the log. A collector in this process takes the spans and counts
them, so that a run in which none came is no proof. `--stamps` measures only what the stamps of one request cost, in CPU time of this
process's thread, the best of nine.
"""

from __future__ import annotations

import threading
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from toque.clusters.telemetry.tracing import Keeper, Tracing, begin_request, mark, use_tracing
from toque.clusters.telemetry.tracing.active import provider_of
from toque.load.benchmarks.harness import main, say
from toque.load.benchmarks.serving.prediction_log import Variant, compare_starts


def run(
    *,
    stamps: Annotated[bool, "measure only what the stamps cost"] = False,
    share: Annotated[float, "of requests that are kept"] = 0.01,
    starts: int = 6,
    rounds: int = 4,
    seconds: float = 1,
    connections: tuple[int, ...] = (1, 16, 64),
) -> None:
    """Measure the predictors and print the result."""
    if stamps:
        print_stamps()
        return
    with collector() as (url, sizes):
        own = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "TOQUE_TRACE_SHARE": str(share)}
        variants = (Variant("untraced"), Variant(f"share {share:g}", environment=own))
        compare_starts(variants, starts, rounds, seconds, connections)
    say(f"{len(sizes)} batches of spans came, {sum(sizes) / 1e6:.1f} MB")


@contextmanager
def collector() -> Iterator[tuple[str, list[int]]]:
    """Run a collector that takes everything and keeps the size of each request; yields its URL and those sizes."""
    sizes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Take spans, and answer that they came."""
            sizes.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing about a request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sizes
        server.shutdown()


def print_stamps() -> None:
    """Print what a request costs without tracing, with it and not kept, and kept with its spans made."""
    headers = {b"authorization": b"Bearer x", b"content-type": b"application/json"}

    def request() -> None:
        trace = begin_request(headers)
        mark("token")
        mark("read")
        trace.answered_by("5b" * 16, "late", 3, "champion", id_made_here=True)
        trace.mark("model")
        trace.row()
        trace.mark("log")
        mark("encode")
        trace.finish("POST", "/v2/models/late/infer", 200)

    provider = provider_of("predictor", InMemorySpanExporter())
    kept = Tracing(Keeper(1.0, 60.0, kept_per_s=1e9), provider=provider)
    for name, tracing, number in (
        ("off", None, 20_000), ("on, not kept", Tracing(Keeper(0.01, 60.0)), 20_000), ("kept", kept, 300),
    ):  # fmt: skip
        with use_tracing(tracing):
            best_s = min(timeit.repeat(request, number=number, repeat=9, timer=time.thread_time)) / number
        say(f"{name:14}{best_s * 1e6:8.1f} us")
    provider.shutdown()


if __name__ == "__main__":
    main(run, "torch")
