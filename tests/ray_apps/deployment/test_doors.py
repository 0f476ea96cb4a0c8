"""Doors that answer, and those that do not, by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from toque.clusters.profile import Profile
from toque.ray_apps.deployment.deploy import wait_open, why_not
from toque.ray_apps.deployment.errors import DeploymentError


class Door(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/-/healthz" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def profile_at(http: int, grpc: int) -> Profile:
    return Profile.model_validate({"ports": {"http": http, "grpc": grpc}})


def test_a_door_is_open_when_it_answers_by_both_protocols(port: int) -> None:
    assert why_not("127.0.0.1", profile_at(port, port)) == ""
    assert "gRPC" in why_not("127.0.0.1", profile_at(port, 1))
    assert "refused" in why_not("127.0.0.1", profile_at(1, port))


def test_a_door_that_stays_shut_is_named() -> None:
    with pytest.raises(DeploymentError, match=r"door of 10\.0\.0\.6: refused"):
        wait_open(
            ["10.0.0.5", "10.0.0.6"],
            Profile(),
            0.0,
            shut=lambda address, _: "refused" if address.endswith("6") else "",
        )


def test_a_door_may_open_late() -> None:
    answers = iter(["refused", ""])
    wait_open(["10.0.0.5"], Profile(), 30.0, shut=lambda _address, _profile: next(answers))
    assert next(answers, None) is None
