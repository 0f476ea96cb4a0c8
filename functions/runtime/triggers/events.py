"""Events published to topics, their delivery to the functions that subscribe, and workflows that wait for one.

A topic is a journal. A subscription is a function's `OnEvent` and a cursor. Delivery is at least once, and the invocation's key
is made of subscription and event number, so the function runs once for each event. Each event carries the functions that led
to it, and a function does not run on events that it caused itself.
A waiting workflow is suspended and holds no worker. Each process that delivers events sends the workflow the first one that
matches, as a signal. Two processes may send it, which gives the same value.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from toque.functions.runtime import catalog
from toque.functions.runtime.changes import Watch, journals_in, watch_of
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration import OnEvent
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import Origin, invocation_id
from toque.functions.runtime.durable.record import ENDED, event_signal
from toque.functions.runtime.durable.store_requests import with_patience
from toque.functions.runtime.durable.workflow import require_run, wait_for
from toque.functions.runtime.errors import InvalidArguments, KeyConflict, UnknownInvocation
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.secret import refuse_secrets
from toque.functions.runtime.triggers.names import names_of
from toque.registry.errors import InvalidInput, RegistryError
from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal

LONGEST_CHAIN = 16
ROUND_S = 5.0  # for how long one topic is delivered in one round
REFUSED = "events-refused"
PATH = "event-waiters"  # journal of the workflows that wait
CHECK_ENDED_S = 60.0  # between looks which waiting workflows have ended
Waiters = dict[str, dict[str, Any]]
KEYS_KEPT = 1024  # of a topic's latest events
STORE_RESOLUTION = timedelta(seconds=1)  # of the times of objects


@dataclass(frozen=True, slots=True)
class Subscription:
    """Subscription of a function to a topic. name: its cursor is `subscriptions/{name}.json`."""

    name: str
    function: DeclaredFunction
    on: OnEvent


_added: dict[str, Subscription] = {}


def add(subscription: Subscription) -> None:
    """Add a subscription that no decorator declares; the same name replaces it."""
    _added[subscription.name] = subscription


def declared(used: Context) -> list[Subscription]:
    """List the subscriptions of the functions that a workspace sees, and those that were added; records the names of new ones."""

    def fits(name: str, on: OnEvent) -> bool | None:
        cursor = _find_cursor(used, name)
        if cursor is None:
            return None
        topic = topic_of(used, on.topic)
        topic.refresh()
        return cursor <= topic.next

    subscriptions = [
        Subscription(name, function, on)
        for function in catalog.all_functions()
        if function.on and used.sees(function.reference)
        for name, on in zip(
            names_of(used, "subscription", function.name, function.on, fits=fits, record=True),
            function.on,
            strict=True,
        )
    ]
    return [*subscriptions, *_added.values()]


def publish(
    topic: str, payload: Mapping[str, Any], *, key: str | None = None, used: Context | None = None
) -> int:
    """Append an event to a topic and return its number.

    payload: a JSON object. key: an event with one of the topic's last 1,024 keys is not appended again; the
    number is then the first event's. used: by default the present context. Raises: SecretLeaked if the
    payload contains a secret of the running function.
    """
    at = used or context()
    refuse_secrets(json.dumps(payload), what=f"an event of {topic}")
    fold = topic_of(at, topic)
    body = {"payload": dict(payload), "key": key, "chain": list(at.chain)}
    entry = fold.transact(lambda keys: None if key is not None and key in keys else body)
    return entry.number if entry else fold.state[str(key)]


def run_events(used: Context) -> int:
    """Deliver new events to subscriptions and waiting workflows; returns how many invocations were submitted.

    Costs one read, and one for each topic, if there are no new events; none while Redis would announce them. A new
    subscription begins with the next event, or with the first if it has `from_start`. A topic's backlog is delivered for some
    seconds, and goes on in the next round. Raises: ExceptionGroup of what failed, once every topic had its turn.
    """
    topics: dict[str, list[Subscription]] = {}
    known = True
    for each in declared(used):
        topics.setdefault(each.on.topic, []).append(each)
        known = known and _topic_reader(used, each.on.topic).knows(each)
    with _watch(used).turn() as due:
        if known and not due:
            return 0
        counts: list[int] = []
        works = [partial(_topic_reader(used, topic).deliver, readers) for topic, readers in topics.items()]
        failures: list[Exception] = []
        for work in (*works, partial(wake_waiters, used)):
            try:
                counts.append(work())
            except Exception as error:  # noqa: BLE001  # raised below: one topic's must not keep the others from their turn
                failures.append(error)
        if failures:
            raise ExceptionGroup(
                f"{len(failures)} of {len(works)} topics and the waiting workflows", failures
            )
        if any(_topic_reader(used, topic).behind for topic in topics):
            _watch(used).notify()
        return sum(counts[: len(works)])


def wait_for_event(
    topic: str, *, where: Mapping[str, Any] | None = None, timeout_s: float | None = None
) -> dict[str, Any]:
    """Wait for the first event of `topic` since this workflow was submitted, and return its payload.

    where: payload fields that must be equal to these values.
    Raises: TimeoutError after timeout_s; FunctionError outside a durable run.
    """
    run, used = require_run("wait_for_event"), context()
    condition = {"topic": topic, "where": dict(OnEvent(topic, where=where or {}).where)}
    name = f"{run.id}/{run.position}"

    def first_event() -> int:
        journal, submitted_at = run.followed.journal, run.followed.record.submitted_at
        # The clocks of publisher and submitter may differ; the store has one.
        stored_at = journal.store.find_modified_at(journal.key(0)) or submitted_at
        return first_since(topic_of(used, topic), stored_at, by_clock=submitted_at)

    first = run.step("event_since", condition, lambda: with_patience(first_event), is_wait=True)
    signal = event_signal(run.position, topic)
    if signal not in run.followed.record.signals:
        body = {"wait": name, "invocation": run.id, "signal": signal, "since": first} | condition
        with_patience(lambda: _waiters(used).transact(lambda waiting: None if name in waiting else body))
    found: dict[str, Any] = wait_for(signal, timeout_s=timeout_s)
    return found


def wake_waiters(used: Context) -> int:
    """Send waiting workflows the events that have come; returns how many were woken; one read if none waits."""
    key = (used.store_url, used.actor)
    if key not in _wakers:
        _wakers[key] = _Waker(used)
    return _wakers[key].wake()


def topic_of(used: Context, topic: str) -> Fold[dict[str, int]]:
    """Open the topic called `topic`; its state maps the latest keys to event numbers."""
    journal = Journal(used.store, f"events/{topic}", actor=used.actor)
    return Fold(journal, {}, _fold_event, encode=dict, decode=dict)


class _TopicReader:
    """Reader of one topic in this process, for all its subscriptions."""

    def __init__(self, used: Context, topic: str) -> None:
        self._used = used
        self._topic = topic
        self._journal = Journal(used.store, f"events/{topic}", actor=used.actor)
        self._cursors: dict[str, int] = {}
        self.behind = False  # whether the last delivery ended before the topic

    def knows(self, subscription: Subscription) -> bool:
        """Whether the subscription has its place in the topic."""
        return subscription.name in self._cursors

    def deliver(self, subscriptions: list[Subscription]) -> int:
        """Deliver the events up to the topic's end, or for some seconds, to every subscription; returns how many were submitted."""
        for each in subscriptions:
            if each.name not in self._cursors:
                self._cursors[each.name] = self._initial_cursor(each)
        submitted, begin = 0, min(self._cursors[each.name] for each in subscriptions)
        end, until, self.behind = begin, time.monotonic() + ROUND_S, False
        try:
            for entry in self._journal.entries(begin):
                if time.monotonic() > until:
                    self.behind = True
                    break
                submitted += sum(self._deliver_one(each, entry) for each in subscriptions)
                end = entry.number + 1
        finally:  # what was delivered is not read again, whatever fails after it
            for each in subscriptions:
                if self._cursors[each.name] < end:
                    self._save_cursor(each, end)
        return submitted

    def _initial_cursor(self, subscription: Subscription) -> int:
        cursor = _find_cursor(self._used, subscription.name)
        if cursor is not None:
            return cursor
        fold = topic_of(self._used, self._topic)
        fold.refresh()
        begin = 0 if subscription.on.from_start else fold.next
        self._save_cursor(subscription, begin)
        return begin

    def _save_cursor(self, subscription: Subscription, number: int) -> None:
        self._used.store.put(_cursor_key(subscription.name), json.dumps({"next": number}).encode())
        self._cursors[subscription.name] = number

    def _deliver_one(self, subscription: Subscription, entry: Entry) -> bool:
        """Submit the subscription's function for an event that matches; returns whether it was submitted."""
        on, payload = subscription.on, entry.body["payload"]
        if entry.number < self._cursors[subscription.name] or not on.matches(payload):
            return False
        refusal = _loop_reason(subscription, entry.body["chain"])
        if refusal is None:
            refusal = self._submit(subscription, entry, payload)
        if refusal is not None:
            self._record_refusal(subscription, entry, refusal)
        return refusal is None

    def _submit(self, subscription: Subscription, entry: Entry, payload: dict[str, Any]) -> str | None:
        on, function = subscription.on, subscription.function
        from_payload = {on.payload_as: payload} if on.payload_as else payload
        try:
            arguments = function.signature.load(dict(on.arguments) | from_payload)
        except Exception as error:  # noqa: BLE001  # validators are the user's code, and raise what they like
            return (
                str(error) if isinstance(error, InvalidArguments) else f"{type(error).__qualname__}: {error}"
            )
        key = f"event {subscription.name} {self._topic} {entry.number}"
        try:
            ledger_of(self._used).submit(
                function, arguments, key=key, origin=Origin(chain=tuple(entry.body["chain"]))
            )
        except (
            KeyConflict
        ):  # accepted before, by code with other defaults, which may have died before it was queued
            ledger_of(self._used).notify(invocation_id(function.name, key))
            return None
        except RegistryError as error:
            if isinstance(error, InvalidInput):
                return str(error)
            raise  # of the store, not of the event: it is delivered in a later round
        except Exception as error:  # noqa: BLE001  # arguments that cannot be stored, such as a secret: they never will be
            return f"{type(error).__qualname__}: {error}"
        return None

    def _record_refusal(self, subscription: Subscription, entry: Entry, reason: str) -> None:
        refusal = {
            "subscription": subscription.name,
            "topic": self._topic,
            "number": entry.number,
            "reason": reason,
        }
        refusals = _refusals(self._used)
        refusals.transact(lambda seen: None if _refusal_key(refusal) in seen else refusal)


_topic_readers: dict[tuple[str, str], _TopicReader] = {}
_watches: dict[str, Watch] = {}


def _topic_reader(used: Context, topic: str) -> _TopicReader:
    key = (used.store_url, topic)
    if key not in _topic_readers:
        _topic_readers[key] = _TopicReader(used, topic)
    return _topic_readers[key]


def _watch(used: Context) -> Watch:
    """Watch of the topics and waiting workflows in a store."""
    if used.store_url not in _watches:
        watched = (journals_in(used.store, "events/*"), journals_in(used.store, PATH))
        _watches[used.store_url] = watch_of(used.redis_url, *watched, every_s=0.0)
    return _watches[used.store_url]


def refusals(used: Context) -> list[dict[str, Any]]:
    """List the events that were not delivered, with subscription and reason: a loop, or an invalid payload."""
    return [entry.body for entry in Journal(used.store, REFUSED, actor=used.actor).entries()]


def _loop_reason(subscription: Subscription, chain: list[str]) -> str | None:
    if len(chain) > LONGEST_CHAIN:
        return f"a chain of {len(chain)} functions led here, more than {LONGEST_CHAIN}: {' > '.join(chain)}"
    if subscription.function.name in chain and not subscription.on.reentrant:
        return f"{subscription.function.name} caused this event itself: {' > '.join(chain)}"
    return None


def _refusals(used: Context) -> Fold[frozenset[str]]:
    journal = Journal(used.store, REFUSED, actor=used.actor)
    return Fold(journal, frozenset(), lambda seen, entry: seen | {_refusal_key(entry.body)})


def _refusal_key(refusal: Mapping[str, Any]) -> str:
    return f"{refusal['subscription']} {refusal['topic']} {refusal['number']}"


def _find_cursor(used: Context, name: str) -> int | None:
    data = used.store.find(_cursor_key(name))
    return None if data is None else int(json.loads(data)["next"])


def _cursor_key(name: str) -> str:
    return f"subscriptions/{name}.json"


@dataclass
class _Waker:
    """Reader of the topics that workflows wait on, in this process."""

    used: Context
    _fold: Fold[Waiters] = field(init=False)
    _next: dict[str, int] = field(default_factory=dict)  # waiter -> number of the event to read next
    _checked_at: float = 0.0

    def __post_init__(self) -> None:
        self._fold = _waiters(self.used)

    def wake(self) -> int:
        waiting = self._fold.refresh()
        if waiting and time.monotonic() - self._checked_at > CHECK_ENDED_S:
            self._checked_at = time.monotonic()
            self._remove_ended(waiting)
        topics = {each["topic"] for each in waiting.values()}
        return sum(self._read(topic, waiting) for topic in topics)

    def _read(self, topic: str, waiting: Waiters) -> int:
        """Read the new events of a topic for all its waiters; returns how many were woken."""
        waiters = {name: each for name, each in waiting.items() if each["topic"] == topic}
        positions = {name: self._next.get(name, int(each["since"])) for name, each in waiters.items()}
        woken: set[str] = set()
        journal = Journal(self.used.store, f"events/{topic}", actor=self.used.actor)
        for entry in journal.entries(min(positions.values())):
            for name, each in waiters.items():
                if name not in woken and entry.number >= positions[name] and _matches(each, entry):
                    with suppress(UnknownInvocation):  # deleted meanwhile
                        ledger_of(self.used).signal(each["invocation"], each["signal"], entry.body["payload"])
                    self._remove(name)
                    woken.add(name)
                elif name not in woken:
                    self._next[name] = entry.number + 1
        return len(woken)

    def _remove_ended(self, waiting: Waiters) -> None:
        """Remove waiters whose workflow has ended or no longer waits for the signal."""
        for name, each in list(waiting.items()):
            record = next(
                ledger_of(self.used).find_all([each["invocation"]]), None
            )  # None: deleted meanwhile
            if (
                record is None
                or record.status in ENDED
                or (record.status == "waiting" and record.waits_for != each["signal"])
            ):
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._fold.transact(lambda waiting: {"done": name} if name in waiting else None)
        self._next.pop(name, None)


_wakers: dict[tuple[str, str], _Waker] = {}


def _matches(waiter: Mapping[str, Any], entry: Entry) -> bool:
    return OnEvent(waiter["topic"], where=waiter["where"]).matches(entry.body["payload"])


def _waiters(used: Context) -> Fold[Waiters]:
    journal = Journal(used.store, PATH, actor=used.actor)
    return Fold(journal, {}, _fold_entry, encode=dict, decode=dict)


def _fold_entry(waiting: Waiters, entry: Entry) -> Waiters:
    if "wait" in entry.body:
        return waiting | {entry.body["wait"]: entry.body}
    return {name: each for name, each in waiting.items() if name != entry.body["done"]}


def _fold_event(keys: dict[str, int], entry: Entry) -> dict[str, int]:
    key = entry.body["key"]
    if key is None:
        return keys
    kept = list(keys.items())[-(KEYS_KEPT - 1) :]
    return dict(kept) | {key: entry.number}


def first_since(fold: Fold[dict[str, int]], at: datetime, *, by_clock: datetime | None = None) -> int:
    """Find the number of the first event stored at or after `at`, both by the store's clock, or the next event's, by a few reads.

    by_clock: `at` by the clock of its machine, which orders events of the same time (S3 gives whole seconds) where their
    publisher's clock agrees with the store's.
    """
    fold.refresh()
    journal = fold.journal

    def stored_at(number: int) -> datetime | None:
        return journal.store.find_modified_at(journal.key(number))

    low = bisect_left(range(fold.next), at, key=lambda number: stored_at(number) or at)
    while by_clock is not None and low < fold.next and stored_at(low) == at:
        published_at = journal.entry(low).at
        if published_at >= by_clock or abs(published_at - at) > STORE_RESOLUTION:
            break
        low += 1
    return low
