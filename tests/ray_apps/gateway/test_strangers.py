"""What somebody without a token can make the gateway read, at any route that it has: pages too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from toque.functions.runtime.context import Context
from toque.ray_apps.admission import RequestLimits
from toque.ray_apps.console.route import STRANGERS_FORM_BYTES, STRANGERS_LIMITS
from toque.ray_apps.console.sessions import Sessions
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry.store import FolderStore

PIECE = 1 << 10


class CountingStore(FolderStore):
    """A store that counts how often sessions and codes are looked for."""

    lookups = 0

    def find(self, key: str) -> bytes | None:
        self.lookups += key.startswith("console/")
        return super().find(key)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "store")


@pytest.fixture
def app(store: CountingStore) -> FastAPI:
    url = f"file://{store.root}"
    app = build_app(Services(context=Context(store=store, store_url=url), labels=lambda _: None))  # type: ignore[arg-type, return-value]
    app.state.console.strangers = RequestLimits(clock=lambda: 0.0)  # nothing is given back
    return app


async def send(
    app: FastAPI, method: str, path: str, *, client: str = "10.0.0.1", pieces: int = 0, **headers: str
) -> tuple[int, int]:
    """Send a request as a server passes it on; returns its status and how many bytes of its body were read."""
    read = status = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read < pieces * PIECE:
            read += PIECE
            return {"type": "http.request", "body": b"a" * PIECE, "more_body": read < pieces * PIECE}
        if pieces:
            return {"type": "http.request", "body": b"", "more_body": False}
        return await asyncio.Event().wait()  # type: ignore[return-value]  # never

    async def answer(message: dict[str, Any]) -> None:
        nonlocal status
        status = int(message.get("status", status))

    sent = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "x", **headers}.items()
    ]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": sent, "client": (client, 1), "server": ("x", 80), "scheme": "http", "http_version": "1.1", "app": app,
    }  # fmt: skip
    await app(scope, receive, answer)  # type: ignore[arg-type]
    return status, read


def changing_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every route of the application that takes a body, with a value for each part of its path."""
    for route in app.routes:
        if isinstance(route, Route):
            path = route.path
            for name in route.param_convertors:
                path = path.replace(f"{{{name}}}", "1").replace(f"{{{name}:path}}", "1")
            yield from ((method, path) for method in (route.methods or set()) - {"GET", "HEAD"})


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "streamed"])
async def test_no_route_reads_more_than_a_small_form_of_a_stranger(app: FastAPI, declared: bool) -> None:  # noqa: FBT001  # a parameter of the test
    routes = sorted(changing_routes(app))
    assert ("POST", "/ui/sign-in") in routes
    assert len(routes) > 40
    for number, (method, path) in enumerate(routes):
        size = {"content_length": str(900 * PIECE)} if declared else {"transfer_encoding": "chunked"}
        status, read = await send(app, method, path, client=f"10.0.1.{number}", pieces=900, **size)
        assert read <= (0 if declared else STRANGERS_FORM_BYTES + PIECE), (method, path)
        assert status in {401, 403, 404, 405, 413}, (method, path, status)


async def test_a_form_that_trickles_is_given_up(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toque.ray_apps.console.route._STRANGERS_PATIENCE_S", 0.01)
    assert await send(app, "POST", "/ui/sign-in") == (408, 0)


@pytest.mark.parametrize(
    "cookie", ["made-up-1", "x" * 42, "x" * 44, "x" * 42 + "=", "\u00e9" * 43, "../" * 14 + "x"]
)
async def test_a_cookie_without_a_sessions_form_is_not_looked_for(
    app: FastAPI, store: CountingStore, cookie: str
) -> None:
    await send(app, "GET", "/ui/models", cookie=f"toque-session={cookie}")
    assert store.lookups == 0


async def test_guessed_sessions_of_one_address_cost_few_reads_and_keep_nobody_else_out(
    app: FastAPI, store: CountingStore
) -> None:
    session = Sessions(store).start("tq_token")
    mine = f"toque-session={session.id}"
    await send(app, "GET", "/ui/models", cookie=mine)
    store.lookups = 0
    burst = int(STRANGERS_LIMITS.rate_per_s or 0) - 1  # the first look was one
    answers = [
        (await send(app, "GET", "/ui/models", cookie=f"toque-session={number:043d}"))[0]
        for number in range(4 * burst)
    ]
    assert answers[:burst] == [401] * burst
    assert answers[burst:] == [429] * len(answers[burst:])
    assert store.lookups <= burst
    assert (await send(app, "GET", "/ui/models", cookie=mine))[
        0
    ] == 401  # its token is none, but it is looked for
    assert (await send(app, "GET", "/ui/sign-in", client="10.0.0.2"))[0] == 200
    assert (await send(app, "GET", "/ui/static/console.css"))[0] == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
async def test_addresses_of_one_caller_share_a_limit(app: FastAPI, one: str, other: str, same: bool) -> None:  # noqa: FBT001  # a parameter of the test
    for _ in range(int(STRANGERS_LIMITS.rate_per_s or 0) + 1):
        status, _ = await send(app, "GET", "/ui/sign-in", client=one)
    assert status == 429
    assert ((await send(app, "GET", "/ui/sign-in", client=other))[0] == 429) == same
