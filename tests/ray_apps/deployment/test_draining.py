"""What is left on a node that drains, and what clouds say before they take a machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from toque.ray_apps.deployment import draining, notices
from toque.ray_apps.deployment.draining import left_on
from toque.ray_apps.deployment.errors import DeploymentError
from toque.ray_apps.deployment.notices import aws_notice, gcp_notice, wait_for_notice


def details(**places: list[tuple[str, str]]) -> dict[str, Any]:
    """What Serve says: places are replicas by application, each on a node and in a state."""
    applications = {
        name: {
            "deployments": {name: {"replicas": [{"node_id": node, "state": state} for node, state in there]}}
        }
        for name, there in places.items()
    }
    return {
        "applications": applications,
        "proxies": {"here": {"status": "DRAINING"}, "there": {"status": "HEALTHY"}},
    }


def test_a_node_is_empty_when_no_replica_and_no_door_is_left_on_it() -> None:
    said = details(
        gateway=[("here", "PENDING_MIGRATION"), ("there", "STARTING")],
        late=[("there", "RUNNING")],
        ticker=[("here", "STOPPING")],
    )
    said["applications"]["pool"] = {
        "deployments": {"pool": {"replicas": [{"state": "STARTING"}]}}
    }  # nowhere yet
    assert left_on("here", said) == ["HAProxy", "gateway", "ticker"]
    assert left_on("elsewhere", said) == []
    said["proxies"]["here"]["status"] = "DRAINED"
    assert "HAProxy" not in left_on("here", said)


def test_waiting_ends_with_the_time_and_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "POLL_S", 0.01)
    steps = [["HAProxy", "late"], ["HAProxy"], []]
    said: list[str] = []
    draining._wait(lambda: steps.pop(0), 60, said.append)
    assert said == ["still here: HAProxy, late", "still here: HAProxy"]
    with pytest.raises(DeploymentError, match=r"after 0\.05 s the node still has late"):
        draining._wait(lambda: ["late"], 0.05, said.append)


class Metadata(BaseHTTPRequestHandler):
    """Answers as the clouds' metadata services do, and asks for what they ask for."""

    pages: dict[str, str] = {}  # noqa: RUF012  # by path; the test fills it

    def do_PUT(self) -> None:
        lasting = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._say("secret" if self.path == "/latest/api/token" and lasting else None)

    def do_GET(self) -> None:
        allowed = (
            self.headers["X-aws-ec2-metadata-token"] == "secret"
            or self.headers["Metadata-Flavor"] == "Google"
        )
        self._say(self.pages.get(self.path) if allowed else None)

    def _say(self, content: str | None) -> None:
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write((content or "").encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.pages = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_aws_says_when_it_takes_a_machine(metadata: str) -> None:
    assert aws_notice(metadata) is None
    said = {"action": "terminate", "time": "2026-11-27T20:02:00Z"}
    Metadata.pages["/latest/meta-data/spot/instance-action"] = json.dumps(said)
    found = aws_notice(metadata, now=lambda: datetime(2026, 11, 27, 20, 0, tzinfo=UTC))
    assert found is not None
    assert found.within_s == 120
    assert "terminate" in found.text


def test_google_says_that_it_takes_a_machine(metadata: str) -> None:
    path = "/computeMetadata/v1/instance/preempted"
    Metadata.pages[path] = "FALSE"
    assert gcp_notice(metadata) is None
    Metadata.pages[path] = "TRUE"
    found = gcp_notice(metadata)
    assert found is not None
    assert found.within_s == 30


def test_a_machine_outside_of_a_cloud_is_never_told(monkeypatch: pytest.MonkeyPatch, metadata: str) -> None:
    assert aws_notice("http://127.0.0.1:1") is None
    answers = [None, None, notices.Notice("now", 1.0)]
    monkeypatch.setitem(notices.CLOUDS, "gcp", lambda: answers.pop(0))
    assert wait_for_notice("gcp", poll_s=0.01).text == "now"
    assert answers == []
