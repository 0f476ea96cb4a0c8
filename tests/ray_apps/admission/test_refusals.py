"""The log of refused requests, and the audit that is read from it."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toque.ray_apps.admission.refusals import MAX_OF_CALLER, MAX_UNKNOWN, RefusalLog
from toque.registry import Access, ObjectStore, Registry, Unavailable
from toque.registry.access.audit import newest_first

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def refuse(log: RefusalLog, who: str | None = "ada", **changes: Any) -> None:
    fields: dict[str, Any] = {
        "status": 403,
        "what": "GET /x",
        "workspace": "payments",
        "client": "",
        "why": "no",
    }
    log.record(who=who, **(fields | changes))


def test_a_known_callers_refusal_is_written_soon(folder_store: ObjectStore):
    log = RefusalLog(folder_store, "gateway")
    refuse(log)
    refuse(log)
    refuse(log, what="GET /y")
    deadline = time.monotonic() + 60
    while not (found := list(newest_first(folder_store, [], "refusal", since=NOW))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert {(each.who, each.what, each.status, each.count) for each in found} == {
        ("ada", "gateway: GET /x", 403, 2),
        ("ada", "gateway: GET /y", 403, 1),
    }


def test_a_flood_of_garbage_is_few_records(folder_store: ObjectStore):
    log = RefusalLog(folder_store, "gateway", clock=lambda: NOW)
    for number in range(10_000):
        refuse(log, who=None, what=f"GET /{number}", client=f"10.0.0.{number % 250}", status=401)
    refuse(log)
    log.flush()
    found = list(newest_first(folder_store, [], "refusal", since=NOW))
    assert len(found) == MAX_UNKNOWN + 2
    assert sum(each.count for each in found if each.who is None) == 10_000
    assert [each.count for each in found if each.who == "ada"] == [1]


def test_refusals_wait_for_a_store_that_is_away(folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    log = RefusalLog(folder_store, "gateway", clock=lambda: NOW)

    def away(*_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(folder_store), "create", away)
        refuse(log)
        log.flush()
    refuse(log)
    log.flush()
    assert sum(each.count for each in newest_first(folder_store, [], "refusal", since=NOW)) == 2


def test_older_refusals_are_left_out(folder_store: ObjectStore):
    now = [NOW]
    log = RefusalLog(folder_store, "gateway", clock=lambda: now[0])
    refuse(log, what="GET /old")
    log.flush()
    now[0] = NOW + timedelta(days=2)
    refuse(log, what="GET /new")
    log.flush()
    found = newest_first(folder_store, [], "refusal", since=NOW + timedelta(days=1))
    assert [each.what for each in found] == ["gateway: GET /new"]


def test_changes_of_access_and_models_are_part_of_the_audit(folder_store: ObjectStore):
    access = Access(folder_store, actor="root", clock=lambda: NOW)
    access.create_workspace("payments")
    access.create_token("bot", "caller", workspace="payments")
    access.revoke("bot")
    found = list(newest_first(folder_store, [], "access", since=NOW))
    assert [(each.who, each.what, each.workspace, each.detail) for each in found] == [
        ("root", "token revoked: bot", "payments", "caller:payments"),
        ("root", "token created: bot", "payments", "caller:payments"),
        ("root", "workspace-created: payments", "payments", ""),
    ]
    Registry(folder_store.within("workspaces/payments"), actor="ada", clock=lambda: NOW).create_model("churn")
    (made,) = newest_first(folder_store, ["payments"], "model", since=NOW)
    assert (made.who, made.what, made.workspace) == ("ada", "model-created: churn", "payments")
    assert list(newest_first(folder_store, ["payments"], "model", since=NOW + timedelta(seconds=1))) == []
    assert list(newest_first(folder_store, ["default"], "model", since=NOW)) == []


def test_refusals_that_waited_for_the_store_stand_at_their_time(folder_store: ObjectStore):
    """The audit is paged by time, so an entry out of its place would be on no page."""
    now = [NOW]
    late = RefusalLog(folder_store, "gateway", clock=lambda: now[0])
    prompt = RefusalLog(folder_store, "late", clock=lambda: now[0])
    refuse(late, what="GET /0", who=None)
    for minute in (1, 2, 3):
        now[0] = NOW + timedelta(minutes=minute)
        refuse(prompt, what=f"GET /{minute}", who=None)
        prompt.flush()
    now[0] = NOW + timedelta(minutes=4)
    late.flush()
    Access(folder_store, actor="root", clock=lambda: NOW + timedelta(minutes=2, seconds=30)).create_workspace(
        "w"
    )
    found = [each.what.split()[-1] for each in newest_first(folder_store, [], None, since=NOW)]
    assert found == ["/3", "w", "/2", "/1", "/0"]
    assert [each.what for each in newest_first(folder_store, [], "access", since=NOW)] == [
        "workspace-created: w"
    ]


def test_a_flood_of_a_caller_is_few_records_and_the_others_are_seen(folder_store: ObjectStore):
    log = RefusalLog(folder_store, "gateway", clock=lambda: NOW, sleep=lambda _: None)
    for number in range(10_000):
        refuse(log, what=f"GET /{number}", status=403 if number % 2 else 429, client=f"10.0.0.{number % 250}")
        if number % 1_000 == 0:
            refuse(log, who="bob", what=f"GET /{number}")
    log.flush()
    found = list(newest_first(folder_store, [], "refusal", since=NOW))
    assert sum(each.count for each in found if each.who == "ada") == 10_000
    assert sum(each.count for each in found if each.who == "bob") == 10
    keys = list(folder_store.list("access/refusals/"))
    assert len([each for each in found if each.who == "ada"]) <= (MAX_OF_CALLER + 2) * len(keys)


def test_a_caller_that_floods_is_written_every_ten_seconds_and_not_every_second(folder_store: ObjectStore):
    log = RefusalLog(folder_store, "gateway", clock=lambda: NOW)
    log._thread = threading.current_thread()  # nobody writes but this test
    for number in range(2 * MAX_OF_CALLER):
        refuse(log, what=f"GET /{number}")
    log.flush()
    log._wake.clear()
    refuse(log, what="GET /more")
    assert not log._wake.is_set()
    refuse(log, who="bob")
    assert log._wake.is_set()
    log.flush()
    refuse(log, what="GET /later")
    assert log._wake.is_set()
