"""Attacks on the HTTP door: bodies before tokens, wrong tokens, patterns that never end, callers without measure."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import httpx

from toque.load.attacks.target import Attacks, Outcome, Target

ATTACKS: Final = Attacks()
WRONG_TOKENS = 5_000
PATIENCE_S = 2.0
_GARBAGE = b'{"a": [' + b"[" * 100_000
_UNAUTHENTICATED = 401


@ATTACKS
async def body_before_token(target: Target) -> Outcome:
    """Send every route a broken body without a token: each must answer 401, and none what is wrong with the body."""
    async with target.client() as admin, target.client("") as nobody:
        document: dict[str, Any] = (await admin.get("/openapi.json")).raise_for_status().json()
        others, json_type = [], {"Content-Type": "application/json"}
        routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
        for method, path in routes:
            url = path.replace("{", "").replace("}", "")
            answer = await nobody.request(method, url, content=_GARBAGE, headers=json_type)
            is_open = path == "/healthz" or path.startswith("/v2/health/")
            if answer.status_code != _UNAUTHENTICATED and not is_open:
                others.append(f"{method} {path}: {answer.status_code}")
    return not others, f"{len(routes)} routes asked; not 401: {others or 'none'}"


@ATTACKS
async def flood_of_wrong_tokens(target: Target) -> Outcome:
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
    return held, f"answers {sorted(statuses)}, a known caller waited {slowest_ms:.0f} ms at most"


@ATTACKS
async def endless_patterns(target: Target) -> Outcome:
    """Search runs by patterns that take a backtracking matcher longer than the world lasts."""
    pattern, value = "%_" * 40 + "x", "a" * 2_000
    async with target.client() as client:
        name = {"name": f"attack-{time.time_ns()}"}
        made = await client.post("/api/2.0/mlflow/experiments/create", json=name)
        experiment = made.raise_for_status().json()["experiment_id"]
        run = {"experiment_id": experiment, "tags": [{"key": "attack", "value": value}]}
        (await client.post("/api/2.0/mlflow/runs/create", json=run)).raise_for_status()
        begun = time.perf_counter()
        search = {"experiment_ids": [experiment], "filter": f"tags.attack LIKE '{pattern}'"}
        answer = await client.post("/api/2.0/mlflow/runs/search", json=search)
        took_s = time.perf_counter() - begun
        await client.post("/api/2.0/mlflow/experiments/delete", json={"experiment_id": experiment})
    return took_s < PATIENCE_S, f"{answer.status_code} after {took_s:.2f} s"


@ATTACKS
async def caller_without_measure(target: Target) -> Outcome:
    """Send more than a token's rate and its requests in flight allow: the rest must be refused with a time to wait."""
    limits = {"rate_per_s": 5, "max_in_flight": 4}
    token = await target.token_of("viewer", limits=limits)
    async with target.client(token) as client:
        answers = await asyncio.gather(*(client.get("/v2") for _ in range(60)))
    statuses = [answer.status_code for answer in answers]
    waits = all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    passed = statuses.count(200)
    held = set(statuses) <= {200, 429} and 1 <= passed < len(statuses) / 2 and waits
    return held, f"{passed} of {len(statuses)} passed, each refusal says when: {waits}"


@ATTACKS
async def huge_bodies(target: Target) -> Outcome:
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
    return set(statuses) <= {400, 413}, f"answers {statuses}"
