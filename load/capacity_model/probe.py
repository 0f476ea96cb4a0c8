"""Measures points of a model on a platform that runs on this machine, by the processor time of its processes.

Processor time says nearly the same on a busy machine as on an idle one, where a rate that is held says who else was there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from load.capacity_model.cpu_time import platform_processes, spent_s
from load.capacity_model.points import Point
from load.scenarios.plan import plan_of
from load.scenarios.processes import put_load
from load.scenarios.scenario import Ask, Scenario
from load.scenarios.shape import Steady
from load.scenarios.target import NotPossible, Target

__all__ = ["Probe"]

_CLIENT_S = 150e-6  # of a core for a request, in the client, which runs here too
_LEAST_SHARE = 0.5  # of what was due must be answered, or the costs are not those of a working model


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe of a model on the platform of `home`. load: share of its capacity that is put on it."""

    target: Target
    home: Path
    keys: Path | None = None
    load: float = 0.6
    seconds: float = 4.0

    def points(
        self, rows: Sequence[int], *, rounds: int = 3, report: Callable[[str], None] | None = None
    ) -> list[Point]:
        """Measure each number of rows `rounds` times, in turns, so that a noisy neighbour hits all. Raises: NotPossible."""
        rates = {each: self._rate(each) for each in rows}
        found = []
        for _ in range(rounds):
            for each in rows:
                found.append(self._point(each, rates[each], self.seconds))
                if report:
                    report(_line(found[-1], rates[each]))
        return found

    def _rate(self, rows: int) -> float:
        """Find a rate that keeps the replicas as busy as wanted, and leaves room for all else on this machine."""
        first = self._point(rows, 20.0, 2.0)
        assert first.replica_s is not None  # noqa: S101 - it was measured
        cores = (os.cpu_count() or 1) * 0.8
        all_s = first.replica_s + (first.door_s or 0) + _CLIENT_S
        return max(10.0, self.load * min(first.replicas / first.replica_s, cores / all_s))

    def _point(self, rows: int, rate: float, seconds: float) -> Point:
        ask = Ask(rows=rows, keys=self.keys)
        scenario = Scenario(shape=Steady(rate=rate, seconds=seconds), mix=(ask,), warm_up_s=0, patience_s=5)
        before = platform_processes(self.home, self.target.model)
        run = put_load(self.target, "capacity", scenario)
        after = platform_processes(self.home, self.target.model)
        found = run.measured()
        replicas = sum(role == "replica" for role, _ in after.values())
        if not replicas:
            raise NotPossible(
                f"no replica of {self.target.model!r} runs here for {self.home}; measure where the platform runs, or give "
                "points of knees by --points"
            )
        if found.answered < _LEAST_SHARE * found.due:
            raise NotPossible(
                f"{found.answered} of {found.due} requests of {rows} rows were answered: {run.problems}"
            )
        spent = {role: taken / found.answered for role, taken in spent_s(before, after).items()}
        return Point(
            rows=rows, replicas=replicas, replica_s=max(spent["replica"], 1e-7), door_s=spent["door"],
            redis_s=spent["redis"], message_bytes=self._message_bytes(ask),
        )  # fmt: skip

    def _message_bytes(self, ask: Ask) -> float:
        """Bytes of a request and its answer together, by asking once."""
        plan = plan_of(
            self.target.url, self.target.model, Scenario(mix=(ask,)), metadata_of=self.target.metadata
        )
        body = plan.parts[0].bodies[0]
        headers = {"Authorization": f"Bearer {self.target.token}"} if self.target.token else {}
        answer = httpx.post(
            f"{self.target.url}{plan.parts[0].path}", json=json.loads(body), headers=headers, timeout=30
        )
        sent = sum(len(name) + len(value) + 4 for name, value in answer.request.headers.items())
        return float(len(body) + sent + len(answer.content) + len(str(answer.headers)))


def _line(point: Point, rate: float) -> str:
    assert point.replica_s is not None  # noqa: S101 - it was measured
    return (
        f"{point.rows} rows at {rate:.0f} requests/s, {point.replicas} replicas: replica {point.replica_s * 1e6:.0f} µs, "
        f"door {(point.door_s or 0) * 1e6:.0f} µs, Redis {(point.redis_s or 0) * 1e6:.0f} µs of a core"
    )
