"""Measures points of a model on a platform that runs on this machine, by the processor time of its processes.

Processor time says nearly the same on a busy machine as on an idle one, where a rate that is held says who else was there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from toque.load.capacity_model.fit import Point
from toque.load.processes import platform_processes, redis_cpu_s, spent_s
from toque.load.scenarios.plan import plan_of
from toque.load.scenarios.scenario import Ask, Scenario, Steady
from toque.load.scenarios.sending.processes import put_load
from toque.load.scenarios.target import NotPossible, Target

_CLIENT_S = 250e-6  # of a core for a request, in the client, which runs here too
_RATES = 1.0, 0.3  # of the rate that is found, so that what replicas do anyway can be told from the requests
_SEARCHES, _NEAR = 4, 1.3
_LEAST_SHARE = 0.5  # of what was due must be answered, or the costs are not those of a working model


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe of a model on the platform of `home`, whose Redis is at `redis_url`. load: share of its capacity that is put on it."""

    target: Target
    home: Path
    redis_url: str
    keys: Path | None = None
    load: float = 0.6
    seconds: float = 4.0

    def points(
        self, rows: Sequence[int], *, rounds: int = 2, report: Callable[[str], None] | None = None
    ) -> list[Point]:
        """Measure each number of rows at two rates, `rounds` times, in turns, so that a noisy neighbour hits all. Raises: NotPossible."""
        rates = {row: self._rate(row) for row in rows}
        found = []
        for _ in range(rounds):
            for each, rate in rates.items():
                for part in _RATES:
                    found.append(point := self._point(each, rate * part, self.seconds))
                    if report:
                        report(
                            f"{point.rows} rows at {point.rate:.0f} requests/s, {point.replicas} replicas: "
                            f"replica {point.busy_s(1.0) * 1e6:.0f} µs, door {(point.door_s or 0) * 1e6:.0f} µs, "
                            f"Redis {(point.redis_s or 0) * 1e6:.0f} µs of a core"
                        )
        return found

    def _rate(self, rows: int) -> float:
        """Find a rate that keeps the replicas as busy as wanted, and leaves room for all else on this machine.

        At a low rate most of the cost is what replicas do anyway, so the rate is found in steps.
        """
        rate = 20.0
        for _ in range(_SEARCHES):
            found = self._point(rows, rate, 2.0)
            cores = (os.cpu_count() or 1) * 0.8
            all_s = found.busy_s(1.0) + (found.door_s or 0) + _CLIENT_S
            before, rate = rate, max(10.0, self.load * min(found.replicas / found.busy_s(1.0), cores / all_s))
            if rate < _NEAR * before:
                break
        return rate

    def _point(self, rows: int, rate: float, seconds: float) -> Point:
        """Put a load on the model and read what it cost. Raises: NotPossible."""
        ask = Ask(rows=rows, keys=self.keys)
        scenario = Scenario(shape=Steady(rate=rate, seconds=seconds), mix=(ask,), warm_up_s=0, patience_s=5)
        with redis.Redis.from_url(self.redis_url) as server:
            before, redis_s = platform_processes(self.home, self.target.model), redis_cpu_s(server)
            began = time.monotonic()
            found = put_load(self.target, "capacity", scenario).measured()
            took_s = time.monotonic() - began
            after = platform_processes(self.home, self.target.model)
            redis_s = redis_cpu_s(server) - redis_s
        replicas = sum(role == "replica" for role, _ in after.values())
        if not replicas:
            raise NotPossible(
                f"no replica of {self.target.model!r} runs here for {self.home}; measure where the platform runs, or give "
                "points of knees by --points"
            )
        if found.answered < _LEAST_SHARE * found.due:
            raise NotPossible(f"{found.answered} of {found.due} requests of {rows} rows were answered")
        spent = {role: taken / found.answered for role, taken in spent_s(before, after).items()}
        return Point(
            rows=rows, replicas=replicas, rate=found.answered / took_s, replica_s=max(spent["replica"], 1e-7),
            door_s=spent["door"], redis_s=redis_s / found.answered, message_bytes=self._message_bytes(ask),
        )  # fmt: skip

    def _message_bytes(self, ask: Ask) -> float:
        """Bytes of a request and its answer together, by asking once."""
        target, scenario = self.target, Scenario(mix=(ask,))
        plan = plan_of(target.url, target.model, scenario, metadata_of=target.metadata)
        body, url = plan.parts[0].bodies[0], f"{self.target.url}{plan.parts[0].path}"
        answer = httpx.post(url, json=json.loads(body), headers=self.target.headers, timeout=30)
        sent = sum(len(name) + len(value) + 4 for name, value in answer.request.headers.items())
        return float(len(body) + sent + len(answer.content) + len(str(answer.headers)))
