"""Admission of requests when an endpoint is nearly full: by priority, the others refused with 429."""

from __future__ import annotations

import httpx
import pytest

from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request


class IdleEndpoint(Endpoint):
    """Answers whoever comes in."""

    async def answer(self, request: Request) -> Answer:  # noqa: ARG002 - of the base class
        return 200, [JSON], b"{}"

    async def close(self) -> None: ...


async def ask(endpoint: Endpoint, priority: str | None) -> httpx.Response:
    headers = {"X-Toque-Priority": priority} if priority else {}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(endpoint), base_url="http://replica"
    ) as client:
        return await client.get("/", headers=headers)


@pytest.mark.parametrize(
    ("taken", "let_in"),
    [
        (7, ["low", None, "normal", "high"]),
        (8, [None, "normal", "High"]),
        (15, [None, "normal", "high"]),
        (16, ["high"]),
        (17, ["high"]),
        (18, []),
    ],
)
async def test_the_low_are_refused_first_and_the_high_last(taken: int, let_in: list[str | None]) -> None:
    endpoint = IdleEndpoint(max_in_flight=16)
    endpoint.in_flight = taken
    for priority in {"low", None, "normal", "high", *let_in}:
        answer = await ask(endpoint, priority)
        if priority in let_in or (priority or "").title() in let_in:
            assert answer.status_code == 200, priority
        else:
            assert answer.status_code == 429, priority
            assert answer.headers["retry-after"] == "1"
        assert endpoint.in_flight == taken


async def test_another_priority_is_refused_by_name() -> None:
    refused = await ask(IdleEndpoint(max_in_flight=16), "urgent")
    assert refused.status_code == 400
    assert "X-Toque-Priority: expected low, normal or high, got b'urgent'" in refused.json()["error"]
