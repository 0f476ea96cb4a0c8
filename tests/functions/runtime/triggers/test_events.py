import json
from collections.abc import Callable
from typing import Any

import pytest

from functions import Context, OnEvent, function
from functions.runtime import catalog
from functions.runtime.durable.invocation import ledger_of, run_pending
from functions.runtime.triggers import events
from functions.runtime.triggers.events import publish, refusals, run_events


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
