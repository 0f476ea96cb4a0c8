"""MLflow's protocol in the gateway's process: each path reaches its application, as with a process for each."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from toque.ray_apps.middleware import Beside


def app(name: str, *paths: str) -> Starlette:
    """Application that says its name and the path that it was asked for below its own."""

    async def said(request: Any) -> PlainTextResponse:
        return PlainTextResponse(f"{name} {request.scope['root_path']} {request.url.path}")

    return Starlette(routes=[Route(path, said) for path in paths])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/2.0/runs", "mlflow /api /api/2.0/runs"),
        ("/apis", "gateway  /apis"),
        ("/functions", "gateway  /functions"),
        ("/api/none", "Not Found"),
    ],
)
async def test_a_path_below_the_prefix_is_the_other_applications(path: str, expected: str) -> None:
    both = Beside(app("gateway", "/apis", "/functions", "/api/2.0/runs"), "/api", app("mlflow", "/2.0/runs"))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(both), base_url="http://toque.example"
    ) as client:
        assert (await client.get(path)).text == expected


async def test_the_start_and_end_of_the_process_are_the_gateways() -> None:
    seen: list[str] = []

    async def own(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    async def other(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    await Beside(own, "/api", other)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
