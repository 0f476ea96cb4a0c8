"""Schema registry of the test's own, by HTTP: what Confluent's REST interface says of a schema by its number."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Registry:
    """Schemas by number, as the registry tells them. It can be taken away, and come back at the same address."""

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def come_back(self) -> None:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                registry.logins.append(self.headers["Authorization"])
                status, said = registry.answer(self.path)
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def go_away(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, path: str) -> tuple[int, Any]:
        if path == "/schemas/types":
            return 200, ["JSON", "PROTOBUF", "AVRO"]
        found = self.schemas.get(int(path.rpartition("/")[2]))
        return (200, found) if found else (404, {"error_code": 40403, "message": "Schema not found"})


def wire(number: int, value: bytes) -> bytes:
    """Put the number of its schema before a value."""
    return b"\x00" + number.to_bytes(4, "big") + value
