"""A real Prometheus and Alertmanager: a cause that stands holds back its symptoms, which are told of once it is gone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.clusters.monitoring.alert_watch import PROGRAMS, until, watch

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)),
        reason="needs apt-get install prometheus prometheus-alertmanager",
    ),
]
Values = dict[str, int]


@pytest.fixture
def exporter() -> Iterator[tuple[str, Values]]:
    """Address of a page of series, and their values, which may change."""
    values = {"toque_ticker_leader": 1, "toque_redis_up": 1, "toque_dead_letters": 0}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = "".join(
                f'{name}{{node="a",workspace="default"}} {value}\n' for name, value in values.items()
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", values
    server.shutdown()


def test_a_symptom_is_told_of_once_its_cause_is_gone(tmp_path: Path, exporter: tuple[str, Values]) -> None:
    address, values = exporter
    with watch(tmp_path, door=address, haproxy=address, token="secret") as told:
        values["toque_redis_up"] = 0
        until(lambda: "RedisAway" in told.firing, within_s=300)
        values["toque_dead_letters"] = 2
        until(lambda: told.held_back() == {"DeadLetters"}, within_s=120)
        assert told.ever == {"Watchdog", "RedisAway"}
        values["toque_redis_up"] = 1
        until(
            lambda: told.firing == {"Watchdog", "DeadLetters"}, within_s=600
        )  # a cause fires on for five minutes
        values["toque_dead_letters"] = 0
        until(lambda: told.firing == {"Watchdog"}, within_s=300)
