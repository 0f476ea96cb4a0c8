"""Open-loop load from a client of the lab: requests leave when they are due, and the outcome of each is noted.

The client stands for a load balancer before the cluster's doors: it asks each door for its health several times a
second and sends requests to those that answer. `python -m tests.cluster.load PLAN OUTCOMES` runs until its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel

HEALTH_EVERY_S, HEALTH_WITHIN_S = 0.2, 0.4
LABELS_EVERY_S = 0.25
REQUEST_WITHIN_S = 10.0
GRPC_WITHIN_S = 2.0

Kind = Literal["predict", "gateway", "mlflow", "grpc"]


class Plan(BaseModel):
    """What is asked of whom. doors: addresses; rate: predictions a second; probe_rate: of each other kind; labels: sent
    for every answered prediction; stop: file at whose appearance the load ends sooner.
    """

    doors: list[str]
    token: str
    model: str
    seconds: float
    prefix: str
    rate: float = 0.0
    probe_rate: float = 0.0
    labels: bool = True
    http_port: int = 8000
    grpc_port: int = 8001
    stop: Path | None = None


class Outcome(BaseModel):
    """One request. at: when it was due, in seconds since the epoch; seconds: from then to its end; said: `ok`, or what
    went wrong; labelled: whether its label was acknowledged.
    """

    kind: Kind
    name: str
    door: str
    at: float
    seconds: float
    said: str
    labelled: bool = False

    @property
    def failed(self) -> bool:
        return self.said != "ok"


def read_outcomes(file: Path) -> list[Outcome]:
    """All requests of a load that has ended, in the order in which they were due."""
    return sorted(map(Outcome.model_validate_json, file.read_text().splitlines()), key=lambda each: each.at)


def outage_of(outcomes: Sequence[Outcome], kind: Kind, at: float) -> float:
    """Seconds from a loss until the last request of a kind was due that failed."""
    return max(
        (each.at - at for each in outcomes if each.kind == kind and each.failed and each.at > at), default=0.0
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@dataclass
class Client:
    """A client with its balancer. healthy: the doors that take requests."""

    plan: Plan
    http: aiohttp.ClientSession
    healthy: set[str] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    unlabelled: list[Outcome] = field(default_factory=list)
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send until the time is over, and until every label is acknowledged."""
        watchers = [asyncio.ensure_future(self._watch(door)) for door in self.plan.doors]
        await asyncio.sleep(2 * HEALTH_EVERY_S + HEALTH_WITHIN_S)
        end = time.time() + self.plan.seconds
        kinds: list[tuple[Kind, float, Callable[[str, str], Awaitable[str]]]] = [
            ("predict", self.plan.rate, self._predict),
            ("gateway", self.plan.probe_rate, self._ask_gateway),
            ("mlflow", self.plan.probe_rate, self._ask_mlflow),
            ("grpc", self.plan.probe_rate, self._ask_grpc),
        ]
        labels = asyncio.ensure_future(self._label(end)) if self.plan.labels else None
        await asyncio.gather(*(self._send(kind, rate, ask) for kind, rate, ask in kinds if rate))
        if labels is not None:
            self.sent.set()
            await labels
        for each in watchers:
            each.cancel()

    async def _send(self, kind: Kind, rate: float, ask: Callable[[str, str], Awaitable[str]]) -> None:
        begun, sent = time.time(), []
        turns = self._turns()
        for number in range(round(rate * self.plan.seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.time()))
            if self.plan.stop is not None and self.plan.stop.exists():
                break
            name = f"{self.plan.prefix}-{kind}-{number}"
            sent.append(asyncio.ensure_future(self._one(kind, name, next(turns), due, ask)))
        await asyncio.gather(*sent)

    async def _one(
        self, kind: Kind, name: str, door: str, due: float, ask: Callable[[str, str], Awaitable[str]]
    ) -> None:
        try:
            said = await asyncio.wait_for(ask(door, name), REQUEST_WITHIN_S)
        except TimeoutError:
            said = "timeout"
        except aiohttp.ClientError as error:
            said = type(error).__name__
        outcome = Outcome(kind=kind, name=name, door=door, at=due, seconds=time.time() - due, said=said)
        self.outcomes.append(outcome)
        if kind == "predict" and not outcome.failed:
            self.unlabelled.append(outcome)

    def _turns(self) -> Iterator[str]:
        """The door of the next request: a healthy one if any is."""
        for number in itertools.count():
            doors = [door for door in self.plan.doors if door in self.healthy] or self.plan.doors
            yield doors[number % len(doors)]

    async def _watch(self, door: str) -> None:
        """Ask a door for its health: one answer that fails takes it out, two good ones in a row bring it back."""
        good = 1
        while True:
            try:
                async with self.http.get(
                    self._url(door, "/-/healthz"), timeout=aiohttp.ClientTimeout(total=HEALTH_WITHIN_S)
                ) as answer:
                    good = good + 1 if answer.status == 200 else 0
            except (aiohttp.ClientError, TimeoutError):
                good = 0
            if good == 0:
                self.healthy.discard(door)
            elif good > 1:
                self.healthy.add(door)
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _label(self, end: float) -> None:
        """Send the labels of what was answered, each until it is acknowledged."""
        turns = self._turns()
        while (time.time() < end and not self.sent.is_set()) or self.unlabelled:
            await asyncio.sleep(LABELS_EVERY_S)
            batch, self.unlabelled = self.unlabelled, []
            body = [{"prediction_id": each.name, "label": 1.0} for each in batch]
            if not body:
                continue
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, asyncio.TimeoutError):
                async with self.http.post(
                    self._url(next(turns), "/feedback"), json=body, timeout=aiohttp.ClientTimeout(total=3)
                ) as answer:
                    if answer.status == 200 and (await answer.json())["accepted"] == len(body):
                        for each in batch:
                            each.labelled = True
                        continue
            if time.time() < end + 60:
                self.unlabelled += batch

    async def _predict(self, door: str, name: str) -> str:
        body = {
            "id": name,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}],
        }
        return await self._http("POST", door, f"/v2/models/{self.plan.model}/infer", body)

    async def _ask_gateway(self, door: str, _: str) -> str:
        return await self._http("GET", door, f"/models/{self.plan.model}")

    async def _ask_mlflow(self, door: str, _: str) -> str:
        return await self._http("GET", door, "/api/2.0/mlflow/experiments/get?experiment_id=0")

    async def _http(self, method: str, door: str, path: str, body: Any = None) -> str:
        async with self.http.request(method, self._url(door, path), json=body) as answer:
            await answer.read()
            return "ok" if answer.status == 200 else f"status {answer.status}"

    async def _ask_grpc(self, door: str, _: str) -> str:
        import grpc  # late: only loads with probes need it
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        async with grpc.aio.insecure_channel(f"{door}:{self.plan.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("authorization", f"Bearer {self.plan.token}"),)
            request = service_pb2.ModelReadyRequest(name=self.plan.model)
            try:
                answer = await stub.ModelReady(request, metadata=metadata, timeout=GRPC_WITHIN_S)
            except grpc.aio.AioRpcError as error:
                return f"grpc {error.code().name}"
            return "ok" if answer.ready else "not ready"

    def _url(self, door: str, path: str) -> str:
        return f"http://{door}:{self.plan.http_port}{path}"


async def _main(plan: Plan, file: Path) -> None:
    headers = {"Authorization": f"Bearer {plan.token}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as http:
        client = Client(plan, http)
        await client.run()
    partial = file.with_suffix(".partial")
    partial.write_text("".join(f"{each.model_dump_json()}\n" for each in client.outcomes))
    partial.replace(file)


if __name__ == "__main__":
    asyncio.run(_main(Plan.model_validate(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])))
