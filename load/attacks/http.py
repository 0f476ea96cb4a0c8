"""Attacks on the HTTP door: bodies before tokens, wrong tokens, patterns that never end, callers without measure."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import httpx

from toque.load.attacks.target import Attacks, Finding, Target

WRONG_TOKENS = 5_000
PATIENCE_S = 2.0
_GARBAGE = b'{"a": [' + b"[" * 100_000
_UNAUTHENTICATED = 401


async def body_before_token(target: Target) -> Finding:
    """Send every route a broken body without a token: each must answer 401, and none what is wrong with the body."""
    async with target.client() as admin, target.client("") as nobody:
        document: dict[str, Any] = (await admin.get("/openapi.json")).raise_for_status().json()
        others = []
        asked = 0
        for path, operations in document["paths"].items():
            for method in operations:
                url = path.replace("{", "").replace("}", "")
                answer = await nobody.request(
                    method, url, content=_GARBAGE, headers={"Content-Type": "application/json"}
                )
                asked += 1
                if answer.status_code != _UNAUTHENTICATED and not _is_open(path):
                    others.append(f"{method} {path}: {answer.status_code}")
    return Finding("body_before_token", not others, f"{asked} routes asked; not 401: {others or 'none'}")


def _is_open(path: str) -> bool:
    return path == "/healthz" or path.startswith("/v2/health/")


async def flood_of_wrong_tokens(target: Target) -> Finding:
    """Send thousands of wrong tokens: a known caller must go on as before."""
    async with target.client() as known, target.client("") as nobody:
        await known.get("/v2")

        async def wrong(number: int) -> int:
            token = f"tq_{number:012x}_{'x' * 43}"
            return (await nobody.get("/v2", headers=target.headers(token))).status_code

        slowest_ms, statuses = 0.0, set()
        for begin in range(0, WRONG_TOKENS, 100):
            statuses |= set(await asyncio.gather(*(wrong(begin + each) for each in range(100))))
            begun = time.perf_counter()
            (await known.get("/v2")).raise_for_status()
            slowest_ms = max(slowest_ms, 1e3 * (time.perf_counter() - begun))
    held = statuses <= {_UNAUTHENTICATED, 503} and slowest_ms < 1e3 * PATIENCE_S
    return Finding(
        "flood_of_wrong_tokens",
        held,
        f"answers {sorted(statuses)}, a known caller waited {slowest_ms:.0f} ms at most",
    )


async def endless_patterns(target: Target) -> Finding:
    """Search runs by patterns that take a backtracking matcher longer than the world lasts."""
    pattern = "%_" * 40 + "x"
    value = "a" * 2_000
    async with target.client() as client:
        experiment = (
            (
                await client.post(
                    "/api/2.0/mlflow/experiments/create", json={"name": f"attack-{time.time_ns()}"}
                )
            )
            .raise_for_status()
            .json()["experiment_id"]
        )
        run = {"experiment_id": experiment, "tags": [{"key": "attack", "value": value}]}
        (await client.post("/api/2.0/mlflow/runs/create", json=run)).raise_for_status()
        begun = time.perf_counter()
        search = {"experiment_ids": [experiment], "filter": f"tags.attack LIKE '{pattern}'"}
        answer = await client.post("/api/2.0/mlflow/runs/search", json=search)
        took_s = time.perf_counter() - begun
        await client.post("/api/2.0/mlflow/experiments/delete", json={"experiment_id": experiment})
    return Finding("endless_patterns", took_s < PATIENCE_S, f"{answer.status_code} after {took_s:.2f} s")


async def caller_without_measure(target: Target) -> Finding:
    """Send more than a token's rate and its requests in flight allow: the rest must be refused with a time to wait."""
    limits = {"rate_per_s": 5, "max_in_flight": 4}
    token = await target.token_of("viewer", limits=limits)
    async with target.client(token) as client:
        answers = await asyncio.gather(*(client.get("/v2") for _ in range(60)))
    statuses = [answer.status_code for answer in answers]
    waits = all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    passed = statuses.count(200)
    held = set(statuses) <= {200, 429} and 1 <= passed < len(statuses) / 2 and waits
    return Finding(
        "caller_without_measure", held, f"{passed} of {len(statuses)} passed, each refusal says when: {waits}"
    )


async def huge_bodies(target: Target) -> Finding:
    """Send 256 MiB with a token, declared and undeclared: refused before it is read whole."""

    async def endless() -> Any:
        for _ in range(256):
            yield b" " * (1 << 20)

    statuses = []
    async with target.client() as client:
        for headers in ({"Content-Length": str(256 << 20)}, {}):
            try:
                answer = await client.post("/feedback", content=endless(), headers=headers)
                statuses.append(answer.status_code)
            except httpx.TransportError:  # closed while we sent: refused as well
                statuses.append(413)
    return Finding("huge_bodies", set(statuses) <= {400, 413}, f"answers {statuses}")


ATTACKS: Final[Attacks] = {
    each.__name__: each
    for each in (
        body_before_token,
        flood_of_wrong_tokens,
        endless_patterns,
        caller_without_measure,
        huge_bodies,
    )
}
