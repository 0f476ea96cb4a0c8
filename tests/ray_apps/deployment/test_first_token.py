"""The first administrator's token: made once, kept before anybody needs it, in a file or a Kubernetes secret."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.ports import free_port
from toque.ray_apps.deployment.deploy import TokenFile, TokenSecret, ensure_first_token
from toque.ray_apps.deployment.errors import DeploymentError
from toque.registry import EVERY_WORKSPACE, Access, ObjectStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def test_a_token_is_made_once(store: ObjectStore, tmp_path: Path) -> None:
    place = TokenFile(tmp_path / "secrets" / "token")
    assert "made," in ensure_first_token(store, place)
    token = place.read()
    assert (tmp_path / "secrets" / "token").stat().st_mode & 0o777 == 0o600
    principal = Access(store, actor="test").verify(token)
    assert principal is not None
    assert principal.may("admin", "any")
    assert "made," not in ensure_first_token(store, place)
    assert place.read() == token


def test_a_token_that_was_lost_before_it_was_kept_is_revoked(store: ObjectStore, tmp_path: Path) -> None:
    class Killed(TokenFile):
        def write(self, token: str) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_first_token(store, Killed(tmp_path / "token"))
    place = TokenFile(tmp_path / "token")
    ensure_first_token(store, place)
    access = Access(store, actor="test")
    assert access.verify(place.read())
    assert sum(each.revoked_at is None for each in access.list_tokens()) == 1


def test_a_token_in_use_outlives_the_machine_that_had_it(store: ObjectStore, tmp_path: Path) -> None:
    lost, place = TokenFile(tmp_path / "lost" / "token"), TokenFile(tmp_path / "token")
    ensure_first_token(store, lost)
    access = Access(store, actor="test")
    assert access.verify(lost.read())  # somebody uses it
    assert "--new-token" in ensure_first_token(store, place)
    assert place.read() == ""
    assert access.verify(lost.read())
    assert "made, in" in ensure_first_token(store, place, renew=True)
    later = Access(store, actor="test")
    assert later.verify(place.read())
    assert later.verify(lost.read()) is None


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_place_that_cannot_be_written_never_leaves_a_platform_without_a_token(
    store: ObjectStore, tmp_path: Path, fails_at: int
) -> None:
    class Failing(TokenFile):
        writes = 0

        def write(self, token: str) -> None:
            self.writes += 1
            if self.writes == fails_at:
                raise DeploymentError("secret toque-admin: 403")
            super().write(token)

    place = TokenFile(tmp_path / "token")
    ensure_first_token(store, place)
    with pytest.raises(DeploymentError):
        ensure_first_token(store, Failing(tmp_path / "token"), renew=True)
    assert fails_at > 1 or Access(store, actor="test").verify(
        place.read()
    )  # refused before anything was revoked
    ensure_first_token(store, place)  # the job's next try, with or without `--new-token`
    access = Access(store, actor="test")
    assert access.verify(place.read())
    assert sum(record.revoked_at is None for record in access.list_tokens()) == 1


def test_who_has_an_administrator_gets_no_second_one(store: ObjectStore, tmp_path: Path) -> None:
    Access(store, actor="test").create_token("chef", "admin", workspace=EVERY_WORKSPACE)
    assert "none made, as chef" in ensure_first_token(store, TokenFile(tmp_path / "token"))
    assert not (tmp_path / "token").exists()


def test_a_token_of_another_platform_is_not_overwritten(store: ObjectStore, tmp_path: Path) -> None:
    place = TokenFile(tmp_path / "token")
    ensure_first_token(open_store(f"file://{tmp_path}/other"), place)
    kept = place.read()
    with pytest.raises(DeploymentError, match="does not know"):
        ensure_first_token(store, place)
    assert place.read() == kept


@pytest.fixture
def api_server() -> Iterator[tuple[str, dict[str, dict[str, object]]]]:
    """A stand-in for the part of the Kubernetes API that keeps secrets."""
    secrets: dict[str, dict[str, object]] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: object) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def body(self) -> dict[str, object]:
            found: dict[str, object] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return found

        @property
        def is_forbidden(self) -> bool:
            return self.path.startswith("/forbidden")

        def do_GET(self) -> None:
            assert self.headers["Authorization"] == "Bearer pod"
            found = secrets.get(self.path)
            self.answer(403 if self.is_forbidden else 200 if found else 404, found or {})

        def do_POST(self) -> None:
            body = self.body()
            path = f"{self.path}/{body['metadata']['name']}"  # type: ignore[index]
            status = 403 if self.is_forbidden else 409 if path in secrets else 201
            secrets.setdefault(path, body)
            self.answer(status, {})

        def do_PUT(self) -> None:
            secrets[self.path] = self.body()
            self.answer(200, {})

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", secrets
    server.shutdown()


def test_a_secret_of_kubernetes_keeps_it_too(
    store: ObjectStore, tmp_path: Path, api_server: tuple[str, dict[str, dict[str, object]]]
) -> None:
    url, secrets = api_server
    (tmp_path / "namespace").write_text("kitchen")
    (tmp_path / "token").write_text("pod")
    path = "/api/v1/namespaces/kitchen/secrets/first"
    secrets[path] = {"data": {}}  # made before, and empty
    place = TokenSecret("first", account=tmp_path, server=url)
    assert place.where in ensure_first_token(store, place)
    kept = base64.b64decode(secrets[path]["data"]["token"]).decode()  # type: ignore[index]
    assert Access(store, actor="test").verify(kept)
    assert place.read() == kept
    assert "made," not in ensure_first_token(store, place)


def test_a_secret_that_may_not_be_read_or_a_server_that_is_away_is_refused_in_words(
    store: ObjectStore, tmp_path: Path, api_server: tuple[str, dict[str, dict[str, object]]]
) -> None:
    (tmp_path / "namespace").write_text("kitchen")
    (tmp_path / "token").write_text("pod")
    forbidden = TokenSecret("first", account=tmp_path, server=f"{api_server[0]}/forbidden")
    with pytest.raises(DeploymentError, match=r"secret first: .* 403 .*; may the pod's account read it\?"):
        ensure_first_token(store, forbidden)
    with pytest.raises(DeploymentError, match=r"403 .*; may the pod's account create and update it\?"):
        forbidden.write("secret")
    away = TokenSecret("first", account=tmp_path, server=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(DeploymentError, match="secret first: the API server does not answer"):
        ensure_first_token(store, away)
