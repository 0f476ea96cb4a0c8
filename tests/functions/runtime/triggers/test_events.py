import builtins
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from tests.conditions.faults import KILLS, Fault, Faults, FaultyStore, KilledError
from toque.functions import Context, OnEvent, function
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.invocation import ledger_of, run_pending
from toque.functions.runtime.triggers import events
from toque.functions.runtime.triggers.events import publish, refusals, run_events
from toque.registry.errors import Damaged
from toque.registry.store import FolderStore


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_declared", {})
    monkeypatch.setattr(events, "_topic_readers", {})
    monkeypatch.setattr(events, "_added", {})


def listening(**options: Any) -> Any:
    @function(on=OnEvent("alarms", **options))
    def heed(model: str, level: int = 0) -> str:
        return f"{model} {level}"

    return heed


def results(used: Context) -> list[Any]:
    return [ledger_of(used).arguments(each) for each in ledger_of(used).invocations()]


def test_an_event_runs_its_subscribers_once(used: Context) -> None:
    listening()
    assert run_events(used) == 0
    assert publish("alarms", {"model": "late", "level": 2}) == 0
    assert run_events(used) == 1
    assert run_events(used) == 0
    assert results(used) == [{"model": "late", "level": 2}]


def test_delivering_again_after_a_crash_runs_nothing_twice(used: Context) -> None:
    listening()
    run_events(used)
    publish("alarms", {"model": "late"})
    assert run_events(used) == 1
    used.store.put(
        "subscriptions/heed.json", json.dumps({"next": 0}).encode()
    )  # as if it had died before this write
    events._topic_readers.clear()
    run_events(used)
    assert len(results(used)) == 1


@pytest.mark.parametrize("fault", KILLS)
def test_an_event_whose_delivery_is_cut_off_runs_once_by_code_with_other_arguments(
    used: Context, tmp_path: Path, fault: Fault
) -> None:
    for number in count(1):
        faults, store = Faults(), FolderStore(tmp_path / f"{number}")
        world = replace(used, store=FaultyStore(store, faults), store_url=store.url)
        catalog._declared.clear()
        listening(arguments={"level": 1})
        run_events(world)
        publish("alarms", {"model": "late"}, used=world)
        with faults.inject(fault, number) as injected, suppress(KilledError):
            run_events(world)
        if injected.struck is None:
            break
        accepted = results(world)
        catalog._declared.clear()
        listening(arguments={"level": 2})
        events._topic_readers.clear()
        run_events(world)
        assert len(results(world)) == 1
        assert accepted in ([], results(world))
        assert len(list(ledger_of(world).unfinished())) == 1
    assert number > 3


def test_a_key_published_before_is_not_appended_again(used: Context) -> None:
    assert publish("alarms", {"model": "late"}, key="a") == 0
    assert publish("alarms", {"model": "late"}, key="b") == 1
    assert publish("alarms", {"model": "late"}, key="a") == 0
    assert publish("alarms", {"model": "late"}) == 2


def test_filters_choose_by_payload(used: Context) -> None:
    listening(where={"level": 2})
    run_events(used)
    for level in (1, 2, 3):
        publish("alarms", {"model": "late", "level": level})
    publish("alarms", {"model": "late"})
    assert run_events(used) == 1
    assert results(used) == [{"model": "late", "level": 2}]


def test_a_new_subscription_begins_with_the_next_event_unless_from_start(used: Context) -> None:
    publish("alarms", {"model": "old"})
    listening()

    @function(on=OnEvent("alarms", from_start=True, payload_as="event"))
    def remember(event: dict[str, Any]) -> None:
        pass

    assert run_events(used) == 1
    assert results(used) == [{"event": {"model": "old"}}]


def test_an_invalid_payload_is_recorded_and_blocks_nothing(used: Context) -> None:
    listening()
    run_events(used)
    publish("alarms", {"wrong": 1})
    publish("alarms", {"model": "late"})
    assert run_events(used) == 1
    (refused,) = refusals(used)
    assert refused["number"] == 0
    assert "unknown parameter" in refused["reason"]


def test_what_a_function_causes_does_not_run_it_again(used: Context, eventually: Callable[..., None]) -> None:
    @function
    def shout(model: str) -> int:
        return publish("alarms", {"model": model})

    @function(on=OnEvent("alarms"))
    def answer(model: str) -> int:
        shout.submit(model)
        return shout.remote(model).result()

    run_events(used)
    publish("alarms", {"model": "late"})

    def quiet() -> bool:
        return run_events(used) == 0 and run_pending(used) == 0

    eventually(quiet)
    reasons = [each["reason"] for each in refusals(used)]
    assert len(reasons) == 2
    assert any("answer > shout" in each for each in reasons)
    assert len([each for each in ledger_of(used).invocations() if each.function == "answer"]) == 1


def test_a_reentrant_chain_ends_too(used: Context, eventually: Callable[..., None]) -> None:
    @function(on=OnEvent("alarms", reentrant=True))
    def echo(model: str) -> int:
        return publish("alarms", {"model": model})

    run_events(used)
    publish("alarms", {"model": "late"})

    eventually(lambda: run_events(used) == 0 and run_pending(used) == 0 and refusals(used))
    assert len(list(ledger_of(used).invocations())) == events.LONGEST_CHAIN + 1


class Checked(BaseModel):
    """Payload whose validator is the user's, and raises what the payload says."""

    fails: str

    @field_validator("fails")
    @classmethod
    def _check(cls, fails: str) -> str:
        if fails in vars(builtins):
            raise vars(builtins)[fails]("by the validator")
        return fails


@pytest.mark.parametrize(
    "error", ["ZeroDivisionError", "KeyError", "RuntimeError", "ValueError", "RecursionError"]
)
def test_an_event_that_no_submission_takes_is_refused_and_delays_nothing(used: Context, error: str) -> None:
    seen: list[str] = []

    @function(on=OnEvent("a-orders", payload_as="order"))
    def arrange(order: Checked) -> None:
        seen.append(order.fails)

    @function(on=OnEvent("b-deliveries"))
    def deliver(n: int) -> None:
        seen.append(f"delivery {n}")

    run_events(used)
    publish("a-orders", {"fails": error})
    publish("a-orders", {"fails": "no"})
    publish("b-deliveries", {"n": 1})
    assert run_events(used) == 2
    assert {json.dumps(each) for each in results(used)} == {'{"order": {"fails": "no"}}', '{"n": 1}'}
    (refusal,) = refusals(used)
    assert (refusal["topic"], refusal["number"]) == ("a-orders", 0)
    assert run_events(used) == 0


def test_a_topic_that_cannot_be_read_keeps_no_other_and_no_waiting_workflow_from_its_turn(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    @function(on=OnEvent("a-orders"))
    def arrange(n: int) -> None: ...

    @function(on=OnEvent("b-deliveries"))
    def deliver(n: int) -> None: ...

    woken: list[Context] = []
    monkeypatch.setattr(events, "wake_waiters", woken.append)
    run_events(used)
    for number in range(3):
        publish("a-orders", {"n": number})
    publish("b-deliveries", {"n": 7})
    key = "events/a-orders/entries/00000001.json"
    whole = used.store.get(key)
    used.store.put(key, whole.replace(b"payload", b"paylord"))
    for _ in range(2):
        with pytest.raises(ExceptionGroup) as raised:
            run_events(used)
        assert [type(each) for each in raised.value.exceptions] == [Damaged]
    assert len(woken) == 3
    assert {each["n"] for each in results(used)} == {0, 7}
    assert json.loads(used.store.get("subscriptions/arrange.json")) == {
        "next": 1
    }  # what was delivered is not read again
    used.store.put(key, whole)
    assert run_events(used) == 2


def test_a_long_backlog_of_a_topic_is_delivered_in_several_rounds(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening()
    run_events(used)
    for number in range(5):
        publish("alarms", {"model": "late", "level": number})
    monkeypatch.setattr(events, "ROUND_S", 0.0)
    counts = [run_events(used)]
    monkeypatch.setattr(events, "ROUND_S", 60.0)
    counts.append(run_events(used))
    assert counts[0] < 5
    assert sum(counts) == 5
    assert sorted(each["level"] for each in results(used)) == [0, 1, 2, 3, 4]
