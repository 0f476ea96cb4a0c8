"""Events published to topics, and their delivery to the functions that subscribe.

A topic is a journal. A subscription is a function's `OnEvent` and a cursor. Delivery is at least once, and
the invocation's key is made of subscription and event number, so the function runs once for each event. Each
event carries the functions that led to it, and a function does not run on events that it caused itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from toque.functions.runtime import catalog
from toque.functions.runtime.changes.announcer import journals_in
from toque.functions.runtime.changes.feed import Watch, watch_of
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration import OnEvent
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import Origin, invocation_id
from toque.functions.runtime.errors import InvalidArguments, KeyConflict
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.secret import refuse_secrets
from toque.functions.runtime.triggers.names import names_of
from toque.functions.runtime.triggers.topic import topic_of
from toque.functions.runtime.triggers.waiter import PATH as WAITERS
from toque.functions.runtime.triggers.waiter import wake_waiters
from toque.registry.errors import InvalidInput, RegistryError
from toque.registry.journal import Entry, Fold, Journal

LONGEST_CHAIN = 16
ROUND_S = 5.0  # for how long one topic is delivered in one round
REFUSED = "events-refused"


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
        watched = (journals_in(used.store, "events/*"), journals_in(used.store, WAITERS))
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
