"""Invocations in every state, written as executors write them but without running anything."""

from datetime import datetime, timedelta
from typing import Any

from tests.ray_apps.console import sample_functions
from tests.ray_apps.console.sample_platform import NOW
from toque.functions.runtime.durable.ledger import Ledger, Origin, invocation_id
from toque.functions.runtime.durable.values import put_value
from toque.functions.runtime.run.log import Recorder
from toque.registry import ObjectStore

_USAGE = {
    "run_s": 12.25,
    "cpu_s": 9.5,
    "gpu_s": 0.0,
    "peak_memory_bytes": 214_000_000,
    "store_reads": 41,
    "store_writes": 7,
}
_FAILURE = {
    "type": "ConnectionError",
    "message": "weather.example answered 503 for <EWR>",
    "traceback": 'Traceback (most recent call last):\n  File "flights.py", line 12, in load\nConnectionError: 503',
}


FUNCTION: Any = sample_functions.refresh_flights
STATES = ("succeeded", "dead", "cancelled", "waiting", "failed", "running", "queued")
WORK = {state: invocation_id(FUNCTION.name, state) for state in STATES}


class Work:
    """Writes invocations whose time goes on by some minutes with each entry."""

    def __init__(self, store: ObjectStore) -> None:
        self.at = NOW - timedelta(hours=30)
        self.store = store
        self.ledger = Ledger(store, actor="ada", clock=self._now)

    def _now(self) -> datetime:
        self.at += timedelta(seconds=47)
        return self.at

    def submit(
        self, key: str, function: Any = FUNCTION, *, parent: str | None = None, **arguments: Any
    ) -> str:
        return self.ledger.submit(function, arguments, key=key, origin=Origin(parent=parent))

    def add(self, invocation: str, *bodies: dict[str, Any]) -> str:
        followed = self.ledger.follow(invocation)
        for body in bodies:
            followed.append(lambda _, body=body: body)
        return invocation

    def start(self, invocation: str) -> str:
        digest = FUNCTION.digest
        body = {"kind": "started", "worker": "w", "node": "10.0.0.1", "lease_s": 15.0, "digest": digest}
        return self.add(invocation, body)

    def finish(self, invocation: str, result: Any = 3) -> str:
        value = put_value(self.store, result)
        return self.add(self.start(invocation), {"kind": "succeeded", "result": value, "usage": _USAGE})

    def die(self, invocation: str, **failure: str) -> str:
        self.add(self.start(invocation), {"kind": "dead", "failure": _FAILURE | failure, "usage": _USAGE})
        self.ledger.dead_letters.add(invocation)
        return invocation


def fill_work(store: ObjectStore) -> None:
    """Add an invocation in each state, of the id that `WORK` names."""
    work = Work(store)
    done = work.submit("succeeded", airports=["EWR", "JFK"], days=2)
    work.finish(done, {"rows": 8_421, "tables": ["flights", "weather"]})
    for number in range(3):
        work.finish(work.submit(f"n{number}", sample_functions.count_flights, day="2026-02-28"), 942)
    work.die(work.submit("dead", airports=["LGA"]))
    work.ledger.cancel(work.submit("cancelled", days=9))
    waiting = work.start(work.submit("waiting", days=3))
    for name in ("load_source", "materialize", "train_model"):
        result = put_value(store, 1)
        work.add(waiting, {"kind": "step", "function": name, "arguments": "0" * 64, "result": result})
    work.add(waiting, {"kind": "waiting", "signal": "approval", "usage": _USAGE})
    failed = work.start(work.submit("failed", days=4))
    due = (NOW + timedelta(minutes=4)).isoformat()
    work.add(failed, {"kind": "failed", "failure": _FAILURE, "due": due, "usage": _USAGE})
    work.start(work.submit("running", days=5, parent=waiting))
    work.submit("queued", days=6)
    _log(store, done)


def _log(store: ObjectStore, invocation: str) -> None:
    recorder = Recorder(store, invocation, "refresh_flights")
    for text in ("reading flights of 2026-03-01", "8,421 rows, 3 late ones", "<b>done</b>"):
        recorder.line("log" if text.startswith("8") else "stdout", text)
    recorder.close()
