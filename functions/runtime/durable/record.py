"""Record of a durable invocation: a pure fold of its journal's entries.

queued -> running -> succeeded | dead | cancelled
             |  ^
             v  |
      failed, waiting   (until due, then it runs again)

A run that is preempted yields and is queued again.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from toque.functions.runtime.environments import Environment
from toque.functions.runtime.receipt import NO_USAGE, Receipt, Usage
from toque.functions.runtime.reference import current_reference
from toque.registry.errors import NewerFormat
from toque.registry.journal import Entry

Status = Literal["queued", "running", "failed", "waiting", "succeeded", "dead", "cancelled"]
_EVENT = re.compile(r"event ([0-9]+) ")
ENDED = frozenset({"succeeded", "dead", "cancelled"})


class Failure(BaseModel, frozen=True):
    """Error that ended an attempt: its type, message and traceback."""

    type: str
    message: str
    traceback: str = ""


class StepFailure(BaseModel, frozen=True):
    """Error that a step of a workflow ended with. reference: its class; raised: what it was made of, in the form of `values`."""

    failure: Failure
    reference: str
    raised: dict[str, Any]


class Step(BaseModel, frozen=True):
    """Finished step of a workflow: its place among the steps, the called function, the digest of its arguments, and its result or error.

    handles: number of the step whose error the body handled when this one began.
    """

    number: int
    function: str
    arguments: str
    result: dict[str, Any] | None = None
    failure: StepFailure | None = None
    handles: int | None = None

    def is_call(self, function: str, arguments: str) -> bool:
        """Whether this step is a call of this function with arguments of this digest."""
        return (self.function, self.arguments) == (function, arguments)


class Record(BaseModel, frozen=True):
    """State of an invocation after the first `length` entries of its journal.

    arguments, result: in the form of `values`; chain: the functions whose events led here, oldest first;
    trace: in which it was submitted, as a `traceparent`;
    due: when it may run (again); attempts, lost: runs that ended by themselves, and with their worker;
    preempting: since when its run is asked to yield; preemptions: runs that have yielded;
    started_digest: the code that started it, since the last redrive; claim: number of its worker's first entry; node: address
    of the worker's Ray node, for executors alone; limit_s: longest run time of its attempt, None for as long as it takes; environment: what
    it brought beside the platform's packages; finished_later: steps done after one that runs again, which are not run again.
    """

    id: str
    function: str
    reference: Annotated[str, AfterValidator(current_reference)]  # an older release wrote other paths
    arguments: dict[str, Any]
    key: str | None = None
    caller: str
    digest: str
    parent: str | None = None
    chain: tuple[str, ...] = ()
    trace: str | None = None
    submitted_at: datetime
    due: datetime
    status: Status = "queued"
    attempts: int = 0
    lost: int = 0
    preempting: datetime | None = None
    preemptions: int = 0
    worker: str | None = None
    claim: int = 0
    node: str | None = Field(default=None, exclude=True)
    lease_s: float = 0.0
    limit_s: float | None = None
    environment: Environment | None = None
    started_at: datetime | None = None
    first_started_at: datetime | None = None
    started_digest: str | None = None
    steps: tuple[Step, ...] = ()
    finished_later: tuple[Step, ...] = ()
    signals: dict[str, Any] = {}
    waits_for: str | None = None
    waits_until: datetime | None = None
    failure: Failure | None = None
    result: dict[str, Any] | None = None
    usage: Usage | None = None
    receipt: Receipt | None = None
    finished_at: datetime | None = None
    length: int = 1

    @property
    def ended(self) -> bool:
        """Whether the invocation has ended, and changes only if it is redriven."""
        return self.status in ENDED

    @property
    def untouched(self) -> bool:
        """Whether the invocation is new and due at once, by any clock."""
        return self.length == 1 and self.due == self.submitted_at

    @property
    def runnable(self) -> bool:
        """Whether the invocation may run once it is due."""
        idle = self.waits_for is not None and self.waits_until is None
        return self.status in {"queued", "failed"} or (self.status == "waiting" and not idle)


def initial_record(entry: Entry, invocation: str) -> Record:
    """Make the record from its first entry."""
    body = {name: value for name, value in entry.body.items() if name != "kind"}
    body["due"] = body.get("due") or entry.at
    return Record(id=invocation, caller=entry.actor, submitted_at=entry.at, **body)


def fold_entry(record: Record, entry: Entry) -> Record:
    """The record after one more entry. Raises: NewerFormat for a kind that only newer releases know."""
    kind = entry.body["kind"]
    if kind not in _CHANGES:
        raise NewerFormat(f"invocation {record.id} entry {entry.number}", kind, ", ".join(_CHANGES))
    changes = _CHANGES[kind](record, entry)
    return record.model_copy(update={**changes, "length": entry.number + 1})


def _started(record: Record, entry: Entry) -> dict[str, Any]:
    brought = entry.body.get("environment")
    return {
        "status": "running",
        "waits_for": None,
        "waits_until": None,
        "worker": entry.body["worker"],
        "claim": entry.number,
        "node": entry.body.get("node"),  # older releases wrote none
        "lease_s": entry.body["lease_s"],
        "limit_s": entry.body.get("limit_s"),
        "environment": brought and Environment.model_validate(brought),
        "started_at": entry.at,
        "first_started_at": record.first_started_at or entry.at,
        "started_digest": entry.body["digest"],
        "due": entry.at + timedelta(seconds=entry.body["lease_s"]),
        "preempting": None,
    }


def _failed(record: Record, entry: Entry) -> dict[str, Any]:
    return {
        "status": "failed",
        "attempts": record.attempts + 1,
        "failure": Failure(**entry.body["failure"]),
        "due": datetime.fromisoformat(entry.body["due"]),
        "usage": _summed_usage(record, entry),
    } | _without_unfinished(record, entry)


def _lost(record: Record, entry: Entry) -> dict[str, Any]:
    due = datetime.fromisoformat(entry.body["due"])
    return {
        "status": "queued",
        "lost": record.lost + 1,
        "failure": Failure(**entry.body["failure"]),
        "due": due,
        "usage": _summed_usage(record, entry),
    }


def _preempting(_: Record, entry: Entry) -> dict[str, Any]:
    return {"preempting": entry.at}


def _preempted(record: Record, entry: Entry) -> dict[str, Any]:
    """It waits again, before those that were submitted later, and takes up after its last checkpoint."""
    return {
        "status": "queued",
        "preempting": None,
        "preemptions": record.preemptions + 1,
        "due": entry.at,
        "usage": _summed_usage(record, entry),
    }


def _succeeded(record: Record, entry: Entry) -> dict[str, Any]:
    done = {"status": "succeeded", "result": entry.body["result"], "failure": None}
    return _ended(record, entry, attempts=record.attempts + 1) | done


def _dead(record: Record, entry: Entry) -> dict[str, Any]:
    counted = 0 if entry.body.get("lost") else 1
    done: dict[str, Any] = {"status": "dead", "failure": Failure(**entry.body["failure"])}
    done |= _without_unfinished(record, entry)
    return _ended(record, entry, attempts=record.attempts + counted) | done


def _cancelled(record: Record, entry: Entry) -> dict[str, Any]:
    return _ended(record, entry, attempts=record.attempts) | {"status": "cancelled"}


def _ended(record: Record, entry: Entry, *, attempts: int) -> dict[str, Any]:
    usage = _summed_usage(record, entry) or NO_USAGE
    waited = (record.first_started_at or entry.at) - record.submitted_at
    receipt = Receipt(
        invocation=record.id,
        function=record.function,
        digest=record.started_digest or record.digest,
        caller=record.caller,
        finished_at=entry.at,
        attempts=attempts,
        queue_s=max(0.0, waited / timedelta(seconds=1)),
        limit_s=record.limit_s,
        environment=record.environment,
        timed_out=entry.body.get("failure", {}).get("type") == "TimedOut",
        **usage.model_dump(),
    )
    ended = {"finished_at": entry.at, "attempts": attempts, "waits_for": None, "waits_until": None}
    return ended | {"usage": usage, "receipt": receipt}


def _stepped(record: Record, entry: Entry) -> dict[str, Any]:
    body = {name: value for name, value in entry.body.items() if name != "kind"}
    number = body.pop("number", len(record.steps))  # older releases wrote none
    moved = body.pop("moved", False)
    step = Step(number=number, **body)
    changes = {"steps": (*record.steps, step)}
    if not moved:
        return changes
    pool = record.finished_later
    place = next(place for place, done in enumerate(pool) if done.is_call(step.function, step.arguments))
    return changes | {"finished_later": pool[:place] + pool[place + 1 :]}


def _without_unfinished(record: Record, entry: Entry) -> dict[str, Any]:
    """Steps as the next attempt replays them: up to the one whose error ended this one, which runs again.

    Of those after it, what failed, or handled a step's error, belongs to an attempt that is over; the body may reach the others again
    at other places. An event that one of them waited for is not the one that another wait at its place is for.
    """
    unfinished = entry.body.get("unfinished")
    if unfinished is None:
        return {}
    later = tuple(step for step in record.steps if step.number > unfinished)
    done = tuple(step for step in later if step.failure is None and step.handles is None)
    return {
        "steps": tuple(step for step in record.steps if step.number < unfinished),
        "finished_later": (*done, *record.finished_later),
        "signals": {
            name: value for name, value in record.signals.items() if event_position(name) <= unfinished
        },
    }


def event_signal(position: int, topic: str) -> str:
    """Name of the signal that gives a workflow the event it waits for after so many steps."""
    return f"event {position} {topic}"


def event_position(signal: str) -> int:
    """Number of steps before the wait for an event that this signal gives; -1 for a signal of any other kind."""
    match = _EVENT.match(signal)
    return -1 if match is None else int(match[1])


def _waiting(record: Record, entry: Entry) -> dict[str, Any]:
    signal = entry.body.get("signal")
    until = datetime.fromisoformat(entry.body["due"]) if "due" in entry.body else None
    signalled = signal is not None and signal in record.signals  # it came before this entry was written
    return {
        "status": "waiting",
        "waits_for": None if signalled else signal,
        "waits_until": None if signalled or signal is None else until,
        "due": entry.at if signalled or until is None else until,
        "usage": _summed_usage(record, entry),
    }


def _signalled(record: Record, entry: Entry) -> dict[str, Any]:
    name = entry.body["signal"]
    signals = record.signals | {name: entry.body["value"]}
    awaited = {"waits_for": None, "waits_until": None, "due": entry.at}
    return {"signals": signals} | (awaited if record.waits_for == name else {})


def _redriven(_: Record, entry: Entry) -> dict[str, Any]:
    return {
        "status": "queued",
        "attempts": 0,
        "lost": 0,
        "due": entry.at,
        "started_digest": None,
        "finished_at": None,
        "receipt": None,
    }


def _summed_usage(record: Record, entry: Entry) -> Usage | None:
    body = entry.body.get("usage")
    if body is None:
        return record.usage
    new, old = Usage(**body), record.usage
    return new if old is None else add_usage(old, new)


def add_usage(first: Usage, second: Usage) -> Usage:
    """Add the usage of two runs: sums, and the higher peak."""
    return Usage(
        run_s=first.run_s + second.run_s,
        cpu_s=first.cpu_s + second.cpu_s,
        gpu_s=first.gpu_s + second.gpu_s,
        peak_memory_bytes=max(first.peak_memory_bytes, second.peak_memory_bytes),
        store_reads=first.store_reads + second.store_reads,
        store_writes=first.store_writes + second.store_writes,
        energy_j=_added(first.energy_j, second.energy_j),
    )


def _added(first: float | None, second: float | None) -> float | None:
    """Sum of two measurements, of those that were made."""
    known = [each for each in (first, second) if each is not None]
    return sum(known) if known else None


_CHANGES = {
    "started": _started,
    "failed": _failed,
    "lost": _lost,
    "preempting": _preempting,
    "preempted": _preempted,
    "succeeded": _succeeded,
    "dead": _dead,
    "cancelled": _cancelled,
    "step": _stepped,
    "step_failed": _stepped,
    "waiting": _waiting,
    "signalled": _signalled,
    "redriven": _redriven,
}
