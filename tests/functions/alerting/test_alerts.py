"""An alarm on its way to people: decided once, sent to each sink by an invocation of its own."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.functions.alerting.test_decide import HOUR, T0, alarm
from tests.waiting import until
from toque.functions import Context, use_context
from toque.functions.alerting import Alert, AlertPolicy, SinkDownError, SinkRefusedError, Webhook
from toque.functions.alerting.jobs import (
    acknowledge_alert,
    alert_journal,
    alert_status,
    send_alert,
    silence_alerts,
    tell_people,
)
from toque.functions.project import ModelDefinition
from toque.functions.runtime.context import context, context_of
from toque.functions.runtime.durable.executor import THREADS
from toque.functions.runtime.durable.invocation import executor_of, ledger_of, run_pending
from toque.functions.runtime.durable.record import Record
from toque.registry import Journal, NotFound, open_store

DEFINITION = ModelDefinition(name="late", service="s", entities="e", label="y", numeric=("x",))


class Clock:
    now = T0 + HOUR

    def __call__(self) -> Any:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def used(tmp_path: Path, web: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    sinks = (Webhook(name="all", url=web.url), Webhook(name="loud", url=web.url, least="critical"))
    definition = DEFINITION.model_copy(update={"alerts": AlertPolicy(owner="ada", sinks=sinks)})
    code = "from toque.functions.project import ModelDefinition\n\nFEATURES = ()\n"
    code += f"MODELS = [ModelDefinition.model_validate_json({definition.model_dump_json()!r})]\n"
    (tmp_path / "alerted.py").write_text(code)  # a file: workers in processes of their own import it too
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "alerted", raising=False)
    url = f"file://{tmp_path}/store"
    context = Context(open_store(url), url, clock=clock, actor="ada", project="alerted")
    with use_context(context):
        yield context
        executor_of(context).close()


def sendings(used: Context) -> list[str]:
    ledger = ledger_of(used)
    return [ledger.arguments(one)["sink"]["name"] for one in ledger.invocations()]


def test_an_alarm_goes_to_each_sink_once_however_often_it_is_told(used: Context, web: Any) -> None:
    assert tell_people(alarm()).sinks == ("all",)
    again = tell_people(alarm())
    assert again.verdict is not None
    assert (again.verdict.rule, again.sinks) == ("standing", ())
    assert tell_people(alarm(monitor="performance", key="late/performance/1")).sinks == ("all", "loud")
    assert sorted(sendings(used)) == ["all", "all", "loud"]
    (one,) = [
        each
        for each in ledger_of(used).invocations()
        if ledger_of(used).arguments(each)["alert"]["key"] == alarm().key
    ]
    send_alert.submit(**_as_given(used, one)).result(timeout_s=60)
    assert [post["key"] for post in web.posts] == [alarm().key]


def _as_given(used: Context, invocation: Record) -> dict[str, Any]:
    given = send_alert.signature.load(ledger_of(used).arguments(invocation))
    return dict(given) | {"key": f"alert {given['sink'].name} {given['alert'].key}"}


def test_an_alert_names_its_page_where_the_console_has_an_address(used: Context, web: Any) -> None:
    one = alarm(subject="a/b")
    sink, late = Webhook(name="all", url=web.url), replace(used, console_url="https://toque.example/")
    policy = AlertPolicy(owner="ada", sinks=(sink,))
    with use_context(late):
        send_alert(Alert.of(one, policy, key="1", at=T0 + HOUR), sink)
    with use_context(replace(late, workspace="payments")):
        assert (
            context().page("features", "x y") == "https://toque.example/workspaces/payments/ui/features/x%20y"
        )
    with use_context(used):
        send_alert(Alert.of(one, policy, key="2", at=T0 + HOUR), sink)
    page = "https://toque.example/ui/monitors/late?monitor=drift&subject=a%2Fb"
    assert [post["page"] for post in web.posts] == [page, None]


@pytest.mark.parametrize("address", ["toque.example", "javascript:alert(1)"])
def test_an_address_that_no_browser_opens_is_refused(address: str, tmp_path: Path) -> None:
    environment = {"TOQUE_STORE": f"file://{tmp_path}", "TOQUE_CONSOLE_URL": address}
    with pytest.raises(ValueError, match="TOQUE_CONSOLE_URL"):
        context_of(environment)


def test_a_sink_that_the_project_does_not_declare_is_sent_nothing(used: Context, web: Any) -> None:
    tell_people(alarm())
    (one,) = ledger_of(used).invocations()
    given = send_alert.signature.load(ledger_of(used).arguments(one))
    for changed in (
        given["sink"].model_copy(update={"name": "mine"}),
        given["sink"].model_copy(update={"url_secret": "TOQUE_REDIS_URL", "url": None}),
    ):
        with pytest.raises(SinkRefusedError, match="declares no such sink"):
            send_alert(given["alert"], changed)
    assert web.posts == []


def test_a_crash_between_sending_and_recording_sends_nothing_twice(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", _only_of("alerts/late", killed, Journal.append))
        with pytest.raises(KilledError):
            tell_people(alarm())
    assert sendings(used) == ["all"]
    assert alert_status("late").standing == {}
    tell_people(alarm())
    assert sendings(used) == ["all"]
    assert set(alert_status("late").standing) == {"drift/features"}


@pytest.mark.usefixtures("used")
def test_an_alarm_of_a_model_that_the_project_does_not_have_is_not_tried_again() -> None:
    record = tell_people.submit(alarm(model="gone")).wait(timeout_s=60)
    assert (record.status, record.attempts) == ("dead", 1)
    assert record.failure is not None
    assert record.failure.type == "ProjectError"


def _only_of(path: str, instead: Any, append: Any) -> Any:
    return lambda self, *args, **kwargs: (instead if self.path == path else append)(self, *args, **kwargs)


def test_two_who_tell_at_once_record_one_sending(used: Context) -> None:
    first, second = alert_journal("late"), alert_journal("late")
    first.refresh()
    second.refresh()
    tell_people(alarm())
    tell_people(alarm())
    told = [one for one in first.journal.entries() if one.body["event"] == "told"]
    assert len(told) == 1


def test_silenced_acknowledged_and_over(used: Context, clock: Clock) -> None:
    silence_alerts("late", "drift", 2, "works on the feed")
    assert tell_people(alarm()).sinks == ()
    clock.now += 2 * HOUR
    assert tell_people(alarm()).sinks == ("all",)  # it stands when the silence ends
    assert acknowledge_alert("late", "drift/features").standing["drift/features"].acknowledged_by == "ada"
    clock.now += timedelta(days=3)
    assert tell_people(alarm(7)).sinks == ()
    assert tell_people(alarm(8, recovered=True)).sinks == ("all",)
    assert alert_status("late").standing == {}
    with pytest.raises(NotFound, match="no alert about 'drift/features' of 'late' stands"):
        acknowledge_alert("late", "drift/features")
    silence_alerts("late", "*", 5, "holidays")
    assert silence_alerts("late", "*", 0, "back").silences == ()
    with pytest.raises(ValueError, match="hours: Input should be greater than or equal to 0, got -1"):
        silence_alerts("late", "*", -1, "")


def test_a_model_without_a_policy_tells_nobody(used: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("alerted"), "MODELS", [DEFINITION])
    assert tell_people(alarm()).verdict is None
    assert sendings(used) == []


def test_a_sink_that_is_away_for_an_hour_is_still_tried_and_one_that_refuses_is_not() -> None:
    retries = send_alert.retries
    shortest = sum(retries.backoff(attempt, draw=0.0) for attempt in range(1, retries.max_attempts))
    assert shortest >= timedelta(hours=1).total_seconds()
    assert retries.covers(SinkDownError(""))
    assert not retries.covers(SinkRefusedError(""))


def test_an_alert_leaves_at_once_in_the_process_that_dispatches_it(
    used: Context, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside serving, a process takes up to half a minute to start."""
    monkeypatch.setattr("toque.functions.runtime.durable.workers.Child", None)
    tell_people(alarm())
    (one,) = ledger_of(used).invocations()
    followed = ledger_of(used).follow(one.id)
    until(lambda: (run_pending(used), followed.refresh().ended)[1])
    assert [post["key"] for post in web.posts] == [alarm().key]
    assert followed.record.status == "succeeded"


def test_alerts_go_by_processes_while_all_threads_hang(
    used: Context, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, begun = threading.Event(), threading.Semaphore(0)
    executor_of(used).capacity = THREADS + 1

    def hang(*_: Any, **__: Any) -> None:
        begun.release()
        over.wait()

    with monkeypatch.context() as patch:
        patch.setattr("toque.functions.alerting.jobs.deliver", hang)
        for number in range(THREADS):
            tell_people(alarm(number + 2, subject=f"hung-{number}"))
        run_pending(used)
        for _ in range(THREADS):
            assert begun.acquire(timeout=60)
    tell_people(alarm())
    until(lambda: (run_pending(used), web.posts)[1])
    over.set()
    assert [post["key"] for post in web.posts] == [alarm().key]


def test_what_a_sink_refuses_lies_among_the_dead_and_can_be_sent_again(used: Context, web: Any) -> None:
    web.answer = 410
    tell_people(alarm())
    (one,) = ledger_of(used).invocations()
    arguments = _as_given(used, one)
    with pytest.raises(Exception, match=r"sink 'all' answered 410($|\n)"):  # and nothing of what it said
        send_alert.submit(**arguments).result(timeout_s=60)
    assert [each.id for each in ledger_of(used).invocations(status="dead")] == [one.id]
    web.answer = 200
    ledger_of(used).redrive(one.id)
    assert send_alert.submit(**arguments).result(timeout_s=60) == "all"
    assert len(web.posts) == 1
