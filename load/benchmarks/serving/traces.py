"""Benchmark of traces: a predictor without them, and ones that keep a share of the requests and send their spans, in turns.

python -m toque.load.benchmarks.serving.traces [--before CHECKOUT] [--shares 0.01] [--starts 6] [--rounds 4] [--seconds 1]

As `toque.load.benchmarks.serving.prediction_log` measures, all of them with the log. A collector in this process takes the spans. With
--before the baseline is the code of another checkout, such as one of the release before: what the stamps cost that every
request has. The spans that came are counted, so that a run in which none came is no proof.
--stamps measures only what the stamps of one request cost, in CPU time of this process's thread, the best of nine.
"""

from __future__ import annotations

import contextlib
import threading
import time
import timeit
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from toque.clusters.telemetry.tracing import Keeper, Tracing, begin_request, mark, use_tracing
from toque.clusters.telemetry.tracing.active import provider_of
from toque.load.benchmarks.serving.prediction_log import Variant, argument_parser, compare
from toque.load.benchmarks.timing import print_machine


@contextlib.contextmanager
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sizes
    finally:
        server.shutdown()
        server.server_close()


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
        print(f"{name:14}{best_s * 1e6:8.1f} us")
    provider.shutdown()


def main() -> None:
    """Measure the predictors and print the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--before", metavar="CHECKOUT", help="folder whose code is the baseline")
    parser.add_argument("--stamps", action="store_true", help="measure only what the stamps cost")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.01], help="of requests that are kept")
    arguments = parser.parse_args()
    print_machine("torch")
    if arguments.stamps:
        print_stamps()
        return
    with collector() as (url, sizes):
        variants: list[Variant] = [("untraced", [], {})]
        if arguments.before:
            variants.insert(0, ("before", [], {"PYTHONPATH": arguments.before, "PYTHONSAFEPATH": "1"}))
        for share in arguments.shares:
            own = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "TOQUE_TRACE_SHARE": str(share)}
            variants.append((f"share {share:g}", [], own))
        compare(arguments, variants)
    print(f"{len(sizes)} batches of spans came, {sum(sizes) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
