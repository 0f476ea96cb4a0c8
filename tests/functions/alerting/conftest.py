"""A web server and a mail server that keep what they are sent, and answer what they are told to."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Received:
    """answer: a status, or a code of SMTP, for what comes next. mails: as they came over the wire."""

    port: int = 0
    answer: int = 200
    posts: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@pytest.fixture
def web() -> Iterator[Received]:
    got = Received()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if got.answer < 300:
                got.posts.append(json.loads(body))
                got.keys.append(self.headers["Idempotency-Key"])
            self.send_response(got.answer)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        yield from _serving(server, got)


@pytest.fixture
def post_office() -> Iterator[Received]:
    got = Received(answer=250)

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say(220)
            while line := self.rfile.readline():
                word = line[:4].upper().strip()
                if word == b"DATA":
                    self._say(354)
                    lines = iter(self.rfile.readline, b".\r\n")
                    got.mails.append(b"".join(lines).decode())
                self._say({b"RCPT": got.answer, b"QUIT": 221}.get(word, 250))

        def _say(self, code: int) -> None:
            self.wfile.write(f"{code} well\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session) as server:
        yield from _serving(server, got)


def _serving(server: Any, got: Received) -> Iterator[Received]:
    got.port = server.server_address[1]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield got
    server.shutdown()
