"""Locust users that send a plan by an open loop, in as many worker processes and on as many machines as there are.

`python -m toque.load.scenarios.run` starts a master and its workers when a scenario says `client = "locust"`; on another machine a worker joins by
`locust -f load/scenarios/sending/locustfile.py --worker --master-host HOST`, with TOQUE_TOKEN in its environment. The plan comes to the workers
from the master, and what they count goes back to it.

The users of a process share one queue of arrivals: each takes the next, waits until it is due, and sends it. A user is a
connection; a request that found none free in time is dropped, and counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, events
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from toque.load.scenarios.plan import Part, Plan, check_of
from toque.load.scenarios.windows import Tally

NAME = "infer"  # in locust's own statistics
_LEAD_S = 1.0  # from the last worker's arrival until the warm-up begins


class _Sender:
    """What a worker process was told to send."""

    def __init__(self, plan: Plan, index: int, begin: float) -> None:
        self.scenario = plan.scenario
        self.begin = time.perf_counter() + begin - time.time()  # of the shape; the warm-up lies before it
        self.tally = Tally()
        self.check = check_of()
        self.arrivals: Iterator[tuple[float, Part, str]] = plan.requests(index)
        self.active = 0
        self.finished = False

    def now(self) -> float:
        """Seconds from the start of the shape."""
        return time.perf_counter() - self.begin


_here: dict[str, _Sender] = {}
_reported: dict[str, set[str]] = {"done": set()}


@events.init.add_listener  # type: ignore[untyped-decorator] # locust ships no types for its events
def _connect(environment: Any, **_: object) -> None:
    """Have the master hand out the plan, and the workers take it."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message("plan", _take_plan)
    elif isinstance(runner, MasterRunner):
        gevent.spawn(_hand_out, runner)


def _hand_out(runner: Any) -> None:
    """Send the plan to every worker once all are there."""
    plan = Plan.model_validate_json(Path(os.environ["TOQUE_LOAD_PLAN"]).read_text())
    while len(runner.clients.ready) + len(runner.clients.running) < plan.processes:
        gevent.sleep(0.1)
    begin = time.time() + _LEAD_S + plan.scenario.warm_up_s
    for index, client in enumerate(sorted(runner.clients)):
        runner.send_message("plan", {"plan": plan.model_dump_json(), "index": index, "begin": begin}, client)
    counts = Path(os.environ["TOQUE_LOAD_COUNTS"])
    counts.touch()
    counts.with_name(f"{counts.name}.begin").write_text(repr(begin))


def _take_plan(environment: Any, msg: Any, **_: object) -> None:  # noqa: ARG001 - locust's signature
    plan = Plan.model_validate_json(msg.data["plan"])
    _here["sender"] = _Sender(plan, msg.data["index"], msg.data["begin"])


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def _report(client_id: str, data: dict[str, Any], **_: object) -> None:  # noqa: ARG001
    """Add what was counted to a worker's report to the master."""
    sender = _here.get("sender")
    if sender:
        finished = sender.finished and not sender.active
        data["toque"] = sender.tally.changes() | {"done": finished}


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def _collect(client_id: str, data: dict[str, Any]) -> None:
    """Write what a worker counted to the file of the process that started the master."""
    changes = data.get("toque")
    if not changes:
        return
    path = Path(os.environ["TOQUE_LOAD_COUNTS"])
    if changes.pop("done"):
        _reported["done"].add(client_id)
    plan = json.loads(Path(os.environ["TOQUE_LOAD_PLAN"]).read_text())
    if len(_reported["done"]) >= plan["processes"]:
        changes["done"] = True
    with path.open("a", encoding="utf-8") as counts:
        counts.write(json.dumps(changes) + "\n")


class InferenceUser(FastHttpUser):
    """Locust user that is one connection of its process's open loop."""

    connection_timeout = 5.0

    def __init__(self, environment: Any) -> None:
        while "sender" not in _here:  # the plan is on its way
            gevent.sleep(0.05)
        self.sender = _here["sender"]
        self.network_timeout = self.sender.scenario.timeout_s
        super().__init__(environment)
        token = os.environ.get("TOQUE_TOKEN")
        self.headers = {"Content-Type": "application/json"}
        self.headers |= {"Authorization": f"Bearer {token}"} if token else {}

    def infer(self) -> None:
        """Take the next arrival, send it when it is due, and count from then."""
        sender = self.sender
        following = next(sender.arrivals, None)
        if following is None:
            sender.finished = True
            raise StopUser
        due_s, part, body = following
        sender.active += 1
        try:
            gevent.sleep(max(0.0, due_s - sender.now()))
            sender.tally.due(due_s)
            sent_s = sender.now()
            if sent_s - due_s > sender.scenario.patience_s:
                sender.tally.dropped(due_s)
                return
            problem = self._send(part, body)
            sender.tally.ended(due_s, sent_s, sender.now(), problem)
        finally:
            sender.active -= 1

    def _send(self, part: Part, body: str) -> str | None:
        """Send one request; returns what is wrong with its answer."""
        with self.client.post(
            part.path, data=body, headers=self.headers, name=NAME, catch_response=True
        ) as answer:
            if not answer.status_code:
                problem: str | None = f"no answer: {answer.error!r:.80}"
            else:
                head = f"HTTP/1.1 {answer.status_code} ".encode()
                problem = self.sender.check(head, answer.content or b"")
            if problem:
                answer.failure(problem)
            else:
                answer.success()
        return problem

    tasks = [infer]  # noqa: RUF012 - how locust is told
