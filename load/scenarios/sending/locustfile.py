"""Locust users that send a plan by an open loop, in as many worker processes and on as many machines as there are.

`toque load` starts a master and its workers; on another machine a worker joins by
`locust -f load/scenarios/sending/locustfile.py --worker --master-host HOST`, with TOQUE_TOKEN in its environment. The plan comes to the workers
from the master, and what they count goes back to it.

The users of a process share one queue of arrivals: each takes the next, waits until it is due, and sends it. A user is a
connection; a request that found none free in time is dropped, and counted.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO, Any

import gevent
from locust import FastHttpUser, events, runners
from locust.exception import StopUser

from toque.load.scenarios.plan import Part, Plan, check_of
from toque.load.scenarios.windows import Windows

NAME = "infer"  # in locust's own statistics
_LEAD_S = 1.0  # from the last worker's arrival until the warm-up begins
runners.WORKER_REPORT_INTERVAL = 0.5


class _Sender:
    """What a worker process was told to send."""

    def __init__(self, plan: Plan, index: int, begin: float) -> None:
        self.scenario = plan.scenario
        self.begin = begin
        self._ahead_s = time.perf_counter() - time.time()
        self.tally, self.check = Windows(), check_of()
        self.arrivals = plan.requests(index)
        self.active = 0
        self.finished = False
        counts = os.environ.get("TOQUE_LOAD_COUNTS")  # not on another machine
        self._log: IO[str] | None = None
        if plan.log_requests and counts:
            self._log = Path(f"{counts}.{index}.requests").open("w", buffering=1)  # noqa: SIM115 - for as long as the process lives

    def now(self) -> float:
        """Seconds from the start of the shape; the warm-up lies before it."""
        return time.perf_counter() - self._ahead_s - self.begin

    def ended(self, due_s: float, sent_s: float, problem: str | None, body: bytes) -> None:
        """Count a request that was sent, and write its line if the plan asks for lines."""
        end_s = self.now()
        self.tally.ended(due_s, sent_s, end_s, problem)
        if self._log:
            version = None if problem else json.loads(body).get("model_version")
            times = {"due": self.begin + due_s, "sent": self.begin + sent_s, "ended": self.begin + end_s}
            self._log.write(json.dumps(times | {"version": version, "problem": problem}) + "\n")


_here: dict[str, _Sender] = {}
_finished: set[str] = set()


@events.init.add_listener  # type: ignore[untyped-decorator] # locust ships no types for its events
def _connect(environment: Any, **_: object) -> None:
    """Have the master hand out the plan, and the workers take it."""
    runner = environment.runner
    if isinstance(runner, runners.WorkerRunner):
        runner.register_message("plan", _take_plan)
    elif isinstance(runner, runners.MasterRunner):
        gevent.spawn(_hand_out, runner)


def _hand_out(runner: Any) -> None:
    """Send the plan to every worker once all are there."""
    plan = Plan.model_validate_json(Path(os.environ["TOQUE_LOAD_PLAN"]).read_text())
    while len(runner.clients.ready) + len(runner.clients.running) < plan.processes:
        gevent.sleep(0.1)
    begin = time.time() + _LEAD_S + plan.scenario.warm_up_s
    for index, client in enumerate(sorted(runner.clients)):
        runner.send_message("plan", {"plan": plan.model_dump_json(), "index": index, "begin": begin}, client)
    Path(f"{os.environ['TOQUE_LOAD_COUNTS']}.begin").write_text(repr(begin))


def _take_plan(environment: Any, msg: Any, **_: object) -> None:  # noqa: ARG001 - locust's signature
    plan = Plan.model_validate_json(msg.data["plan"])
    _here["sender"] = _Sender(plan, msg.data["index"], msg.data["begin"])


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def _report(client_id: str, data: dict[str, Any], **_: object) -> None:
    """Add what was counted to a worker's report to the master."""
    sender = _here.get("sender")
    if sender:
        state = {
            "worker": client_id,
            "cpu_s": time.process_time(),
            "done": sender.finished and not sender.active,
        }
        data["toque"] = sender.tally.changes() | state


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def _collect(client_id: str, data: dict[str, Any]) -> None:
    """Write what a worker counted to the file of the process that started the master."""
    changes = data.get("toque")
    if not changes:
        return
    if changes["done"]:
        _finished.add(client_id)
    plan = json.loads(Path(os.environ["TOQUE_LOAD_PLAN"]).read_text())
    changes["done"] = len(_finished) >= plan["processes"]
    with Path(os.environ["TOQUE_LOAD_COUNTS"]).open("a", encoding="utf-8") as counts:
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
            sender.ended(due_s, sent_s, *self._send(part, body))
        finally:
            sender.active -= 1

    def _send(self, part: Part, body: str) -> tuple[str | None, bytes]:
        """Send one request; returns what is wrong with its answer, and the answer's body."""
        with self.client.post(
            part.path, data=body, headers=self.headers, name=NAME, catch_response=True
        ) as answer:
            content = answer.content or b""
            if not answer.status_code:
                problem: str | None = f"no answer: {answer.error!r:.80}"
            else:
                problem = self.sender.check(answer.status_code, content)
            if problem:
                answer.failure(problem)
            else:
                answer.success()
        return problem, content

    tasks = [infer]  # noqa: RUF012 - how locust is told
