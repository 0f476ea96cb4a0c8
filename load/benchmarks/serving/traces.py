"""Benchmark of traces: a predictor without them, and ones that keep a share of the requests and send their spans, in turns.

python -m load.benchmarks.serving.traces [--before CHECKOUT] [--shares 0.01] [--starts 6] [--rounds 4] [--seconds 1]

As `load.benchmarks.serving.prediction_log` measures, all of them with the log. A collector in this process takes the spans. With
--before the baseline is the code of another checkout, such as one of the release before: what the stamps cost that every
request has. The spans that came are counted, so that a run in which none came is no proof.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from load.benchmarks.serving.prediction_log import Variant, argument_parser, compare
from load.benchmarks.timing import print_machine


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


def main() -> None:
    """Measure the predictors and print the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--before", metavar="CHECKOUT", help="folder whose code is the baseline")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.01], help="of requests that are kept")
    arguments = parser.parse_args()
    print_machine("torch")
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
