"""A Prometheus that answers queries as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@contextmanager
def prometheus_that_answers(
    known: Callable[[str], bool], *, values: Sequence[str] = ("1", "NaN", "2")
) -> Iterator[str]:
    """Answer one series for each query, now or over a time, of which `known` is true, none for others; yields the URL.

    values: of the series over a time, of which the first is that of now.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            [query] = parse_qs(urlsplit(self.path).query)["query"]
            over = [[60 * number, value] for number, value in enumerate(values)]
            one = {"metric": {}, "value": over[0], "values": over}
            result = [one] if known(query) else []
            body = json.dumps({"status": "success", "data": {"result": result}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
