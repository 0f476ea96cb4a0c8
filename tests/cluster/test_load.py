"""The load generator: when requests leave, which doors they take, and what is noted of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tests.cluster.load import Client, Plan, outage_of
from tests.ports import free_port

DOORS = ("127.0.0.1", "127.0.0.2")


@dataclass
class Door:
    """A platform that answers predictions and takes labels. refused: how many batches of labels it refuses first."""

    address: str
    port: int
    refused: int = 0
    slow_s: float = 0.0
    labels: Counter[str] = field(default_factory=Counter)
    runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application()
        app.router.add_get("/-/healthz", self._healthz)
        app.router.add_post("/v2/models/sum/infer", self._infer)
        app.router.add_post("/feedback", self._feedback)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, self.address, self.port).start()

    async def close(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _infer(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.slow_s)
        return web.json_response({"id": (await request.json())["id"]})

    async def _feedback(self, request: web.Request) -> web.Response:
        if self.refused:
            self.refused -= 1
            return web.Response(status=503)
        rows = await request.json()
        self.labels.update(row["prediction_id"] for row in rows)
        return web.json_response({"accepted": len(rows)})


def plan(port: int, **fields: float) -> Plan:
    given = {"seconds": 2.0, "rate": 50.0} | fields
    return Plan(doors=list(DOORS), token="", model="sum", prefix="load", http_port=port, **given)


async def _until_sent(client: Client, count: int) -> None:
    while len(client.outcomes) < count:  # noqa: ASYNC110  # the client under test announces nothing
        await asyncio.sleep(0.01)


async def run_at(doors: list[Door], port: int) -> Client:
    """Run a second of load at doors that are open meanwhile."""
    for door in doors:
        await door.open()
    async with aiohttp.ClientSession() as http:
        client = Client(plan(port, seconds=1.0), http)
        await client.run()
    for door in doors:
        await door.close()
    return client


async def test_a_door_that_closes_takes_its_own_requests_along_and_no_others() -> None:
    port = free_port()
    doors = [Door(address, port) for address in DOORS]
    for door in doors:
        await door.open()
    async with aiohttp.ClientSession() as http:
        client = Client(plan(port), http)
        running = asyncio.ensure_future(client.run())
        await _until_sent(client, 20)
        await doors[1].close()
        last = client.outcomes[-1].at
        await running
    await doors[0].close()
    failed = [each for each in client.outcomes if each.failed]
    assert {each.door for each in failed} <= {DOORS[1]}
    assert outage_of(client.outcomes, "predict", last) < 1.0
    assert len(client.outcomes) == 100


async def test_requests_leave_when_they_are_due_though_answers_are_slow() -> None:
    port = free_port()
    doors = [Door(address, port, slow_s=1.5) for address in DOORS]
    client = await run_at(doors, port)
    due = sorted(each.at for each in client.outcomes)
    assert len(due) == 50
    assert due[-1] - due[0] < 1.01  # a closed loop would wait for answers
    assert min(each.seconds for each in client.outcomes) >= 1.5


async def test_a_label_is_sent_until_it_is_acknowledged() -> None:
    port = free_port()
    doors = [Door(address, port, refused=1) for address in DOORS]
    client = await run_at(doors, port)
    assert all(each.labelled for each in client.outcomes)
    assert sum((door.labels for door in doors), Counter()) == Counter(each.name for each in client.outcomes)
