"""Random histories of a stream, a log in memory that gives them, and what windows are by brute force."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.conditions.logs import AMOUNTS, BROKEN, DELAYS_S, next_message
from tests.featurestore.streams.events import START
from toque.featurestore.definitions.stream_source import Connection, Messages
from toque.featurestore.errors import MessagesLost
from toque.registry.times import epoch_us

US = timedelta(microseconds=1)


@dataclass
class MemoryLog:
    """Log of some partitions; connections to it are as those to a broker.

    most: greatest amount that the definition in force accepts; judged: by messages that another one decided on, its. first: positions
    before which the log was cut off, by partition; lost: messages that were cut off before anybody read them.
    """

    partitions: int
    most: float = 1_000
    judged: dict[tuple[int, int], float] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    lost: set[tuple[int, int]] = field(default_factory=set)
    patience_s = 0.0
    """How long a consumer waits for messages that were sent."""
    messages: list[list[tuple[int, bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages = [[] for _ in range(self.partitions)]

    def send(self, partition: int, value: bytes, *, at: datetime) -> None:
        self.messages[partition].append((epoch_us(at), value))

    def connect(self) -> Connection:
        return MemoryConnection(self)

    def accept(self, most: float) -> None:
        """Change the definition; messages that the log no longer has stay as they were decided on."""
        for partition, end in self.first.items():
            for position in range(end):
                self.judged.setdefault((partition, position), self.most)
        self.most = most

    def cut_off(self, partition: int, before: int, *, unread: int | None = None) -> None:
        """Delete the messages before a position, as retention does; those from `unread` on are lost."""
        self.first[partition] = before
        self.lost |= {(partition, at) for at in range(before if unread is None else unread, before)}

    def disturb(self, chance: random.Random) -> None:
        """Let happen to the log what may."""


@dataclass
class MemoryConnection:
    log: MemoryLog
    next: dict[int, int] = field(default_factory=dict)

    def partitions(self) -> list[int]:
        return list(range(self.log.partitions))

    def assign(self, positions: Mapping[int, int | None]) -> None:
        first = self.log.first
        self.next = {each: first.get(each, 0) if at is None else at for each, at in positions.items()}

    def poll(self, *, timeout_s: float, limit: int) -> Messages:
        del timeout_s
        found = Messages()
        for each, at in self.next.items():
            if at < self.log.first.get(each, 0):
                raise MessagesLost(f"partition {each} begins at {self.log.first[each]}, not at {at}")
            for position, (taken, value) in enumerate(self.log.messages[each][at : at + limit], at):
                found.add(each, position, taken, value)
                self.next[each] = position + 1
        return found

    def lag(self, positions: Mapping[int, int | None]) -> dict[int, int]:
        return {each: len(self.log.messages[each]) - (at or 0) for each, at in positions.items()}

    def position_at(self, partition: int, at: datetime) -> int:
        taken = [moment for moment, _ in self.log.messages[partition]]
        return sum(moment < epoch_us(at) for moment in taken)

    def close(self) -> None:
        self.next = {}


@dataclass(frozen=True)
class Known:
    """Event as the brute force sees it, times in microseconds."""

    user: str
    amount: float | None
    name: str
    at: int
    known: int


def brute_known(log: MemoryLog, lateness: timedelta | None) -> list[Known]:
    """Go through the log message by message, as the documentation says."""
    found: list[Known] = []
    for partition, messages in enumerate(log.messages):
        known, mark = 0, 0
        for position, (taken, value) in enumerate(messages):
            if (partition, position) in log.lost:
                continue
            most = log.judged.get((partition, position), log.most)
            known = max(known + 1, taken)
            try:
                event = json.loads(value)
                amount = event["amount"]
                at = epoch_us(datetime.fromisoformat(event["at"]))
            except (ValueError, KeyError):
                continue
            if amount is not None and (isinstance(amount, str) or not 0 <= amount <= most):
                continue
            if lateness is not None and at < mark - lateness // US:
                continue
            mark = max(mark, at)
            found.append(
                Known(event["user"], None if amount is None else float(amount), event["id"], at, known)
            )
    return found


def standing(events: list[Known], at: int) -> list[Known]:
    """Events that count at a time: known by then, and of one name, user and time the last."""
    last: dict[tuple[str, str, int], Known] = {}
    for each in sorted(events, key=lambda one: one.known):
        if each.known <= at:
            last[each.name, each.user, each.at] = each
    return list(last.values())


def brute_row(events: list[Known], user: str, at: int, window: timedelta) -> dict[str, Any]:
    """Aggregates of a user's window at a time; sums by fractions, rounded once."""
    inside = [
        each for each in standing(events, at) if each.user == user and at - window // US < each.at <= at
    ]
    values = [each.amount for each in inside if each.amount is not None]
    total = math.fsum(values)
    order = sorted(
        (each.at, max(each.known, each.at), each.amount) for each in inside if each.amount is not None
    )
    return {
        "count": len(inside),
        "sum": total,
        "mean": total / len(values) if values else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "last": order[-1][2] if order else None,
        "last2": order[-2][2] if len(order) > 1 else None,
    }


def row_time(
    events: list[Known], user: str, now: int, window: timedelta, every: timedelta | None
) -> int | None:
    """Time of a user's newest row as of now: of an event's entry, or the boundary after an entry or exit."""
    moments: list[int] = []
    by_known = sorted(events, key=lambda one: one.known)
    for each in by_known:
        if each.user != user:
            continue
        entry = max(each.known, each.at)
        if every is None:
            moments.append(entry)
            continue
        step = every // US
        name = each.name, each.user, each.at
        later = [o.known for o in by_known if (o.name, o.user, o.at) == name and o.known > each.known]
        leaves = min([each.at + window // US, *later])
        moments.append(-(-entry // step) * step)
        if leaves > entry:
            moments.append(-(-leaves // step) * step)
    past = [each for each in moments if each <= now]
    return max(past, default=None)


def send_some(
    chance: random.Random,
    log: MemoryLog,
    sent: list[dict[str, Any]],
    now: datetime,
    *,
    amounts: Sequence[float | None] = AMOUNTS,
) -> None:
    """Send a few events: in any order, some late, some again, some corrected in amount or user, some poison."""
    for _ in range(chance.randrange(8)):
        at = now - timedelta(seconds=chance.choice(DELAYS_S))
        user, amount = f"u{chance.randrange(5)}", chance.choice(amounts)
        fresh = {"user": user, "amount": amount, "at": at.isoformat(), "id": f"e{len(sent)}"}
        one = next_message(chance, sent, fresh)
        sent.append(one)
        value = BROKEN if chance.random() > 0.97 else json.dumps(one).encode()
        log.send(sum(str(one["user"]).encode()) % log.partitions, value, at=now)


BEGIN = START + timedelta(hours=3)
