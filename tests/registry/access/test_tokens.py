from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from toque.registry import (
    EVERY_WORKSPACE,
    Access,
    AlreadyExists,
    Grant,
    InvalidInput,
    Limits,
    NotFound,
    ObjectStore,
    Role,
    Unavailable,
)
from toque.registry.access import QueueShare
from toque.registry.journal import Journal

START = datetime(2013, 1, 1, tzinfo=UTC)


class Time:
    """Wall clock and monotonic clock of an Access, set by the test."""

    def __init__(self) -> None:
        self.now = START
        self.seconds = 0.0

    def access(self, store: ObjectStore, actor: str = "root") -> Access:
        return Access(store, actor=actor, clock=lambda: self.now, monotonic=lambda: self.seconds)


def test_a_token_gives_its_name_and_role(store: ObjectStore):
    access = Access(store, actor="root")
    token = access.create_token("cli", "operator")
    principal = Access(store, actor="door").verify(token)
    assert principal is not None
    assert (principal.name, principal.grants) == ("cli", (Grant(role=Role.operator),))
    assert principal.may("caller")
    assert principal.may(Role.operator)
    assert not principal.may("approver")


def test_the_store_never_holds_the_secret(folder_store: ObjectStore):
    token = Access(folder_store, actor="root").create_token("cli", Role.admin)
    secret = token.split("_", 2)[2]
    assert all(secret.encode() not in folder_store.get(key) for key in folder_store.list(""))
    (record,) = Access(folder_store, actor="x").list_tokens()
    assert (record.name, record.created_by, record.grants[0].role) == ("cli", "root", Role.admin)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + "x",
        lambda t: t[:-1],
        lambda t: "tk" + t[2:],
        lambda _: "",
        lambda _: "a_b_c",
        lambda t: t.replace("tq_", "tq-"),
        lambda t: t.upper(),
    ],
)
def test_other_texts_have_no_principal(folder_store: ObjectStore, change: Any):
    access = Access(folder_store, actor="root")
    assert access.verify(change(access.create_token("cli", "viewer"))) is None


def test_revocation_takes_effect_within_a_second(folder_store: ObjectStore):
    time = Time()
    door, office = time.access(folder_store), time.access(folder_store)
    token = office.create_token("cli", "viewer")
    assert door.verify(token) is not None
    office.revoke("cli")
    assert door.verify(token) is not None
    time.seconds = 1.0
    assert door.verify(token) is None
    with pytest.raises(NotFound, match="'cli'"):
        office.revoke("cli")
    assert office.create_token("cli", "viewer") != token


def test_a_token_expires(folder_store: ObjectStore):
    time = Time()
    access = time.access(folder_store)
    token = access.create_token("cli", "viewer", expires_at=START + timedelta(hours=1))
    assert access.verify(token) is not None
    time.now = START + timedelta(hours=1)
    assert access.verify(token) is None
    access.create_token("cli", "viewer")
    with pytest.raises(InvalidInput, match="expires_at"):
        access.create_token("other", "viewer", expires_at=datetime(2013, 1, 1))  # noqa: DTZ001 - naive on purpose


def test_a_token_that_ended_is_revoked_by_its_name_unless_its_successor_lives(folder_store: ObjectStore):
    time = Time()
    access = time.access(folder_store)
    access.create_token("cli", "viewer", expires_at=START + timedelta(hours=1))
    time.now = START + timedelta(hours=2)
    access.revoke("cli")
    assert [each.revoked_at for each in access.list_tokens()] == [time.now]

    access.create_token("cli", "viewer", expires_at=START + timedelta(hours=3))
    time.now = START + timedelta(hours=4)
    successor = access.create_token("cli", "viewer")
    access.revoke("cli")
    assert access.verify(successor) is None
    access.revoke("cli")
    assert all(each.revoked_at for each in access.list_tokens())
    with pytest.raises(NotFound, match="'cli'"):
        access.revoke("cli")


def test_the_name_of_a_live_token_is_refused(folder_store: ObjectStore):
    access = Access(folder_store, actor="root")
    access.create_token("cli", "viewer")
    with pytest.raises(AlreadyExists, match="revoke it"):
        access.create_token("cli", "admin")


@pytest.mark.parametrize(("name", "role"), [("", "viewer"), ("a/b", "viewer"), ("a", "king"), ("a", "")])
def test_bad_names_and_roles_are_refused(folder_store: ObjectStore, name: str, role: str):
    with pytest.raises(InvalidInput):
        Access(folder_store, actor="root").create_token(name, role)


def test_tokens_last_read_stay_valid_while_the_store_is_away(
    folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    time = Time()
    access = time.access(folder_store)
    token = access.create_token("cli", "viewer")
    fresh = time.access(folder_store)

    def away(*_: object) -> None:
        raise Unavailable("away")

    assert access.verify(token) is not None
    monkeypatch.setattr(type(folder_store), "find", away)
    time.seconds = 5.0
    assert access.verify(token) is not None
    with pytest.raises(Unavailable):
        fresh.verify(token)


def test_verifying_reads_the_store_once_a_second(folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    time = Time()
    access = time.access(folder_store)
    token = access.create_token("cli", "viewer")
    access.verify(token)
    reads: list[int] = []
    find = Journal.find
    monkeypatch.setattr(Journal, "find", lambda self, number: (reads.append(number), find(self, number))[1])
    for _ in range(100):
        access.verify(token)
        access.verify("tq_unknown_token")
    assert reads == []
    time.seconds = 1.5
    access.verify(token)
    assert reads == [1]


def test_recall_uses_the_last_read_without_the_store(
    folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    token = Access(folder_store, actor="root").create_token("cli", "predictor")
    fresh = Access(folder_store, actor="replica")
    assert fresh.recall(token) is None
    fresh.read()

    def hangs(*_: object) -> None:
        raise AssertionError("it would wait")

    monkeypatch.setattr(type(folder_store), "find", hangs)
    principal = fresh.recall(token)
    assert principal is not None
    assert principal.may("predictor")
    assert fresh.recall(token + "x") is None
    assert fresh.recall("no token") is None


def test_a_token_expires_after_ninety_days_unless_said_otherwise(folder_store: ObjectStore):
    time = Time()
    access = time.access(folder_store)
    usual = access.create_token("usual", "viewer")
    eternal = access.create_token("eternal", "viewer", expires_at="never")
    time.now = START + timedelta(days=90) - timedelta(seconds=1)
    assert access.verify(usual) is not None
    time.now = START + timedelta(days=90)
    assert access.verify(usual) is None
    assert access.verify(eternal) is not None


def test_a_tokens_last_use_is_listed_and_written_at_most_every_ten_minutes(folder_store: ObjectStore):
    time = Time()
    access = time.access(folder_store)
    token = access.create_token("cli", "viewer")
    assert access.list_tokens()[0].last_used_at is None
    access.verify(token)
    time.now = START + timedelta(minutes=9)
    access.verify(token)
    assert access.list_tokens()[0].last_used_at == START
    time.now = START + timedelta(minutes=10)
    access.verify(token)
    assert access.list_tokens()[0].last_used_at == time.now


def test_a_token_may_hold_grants_in_several_workspaces(folder_store: ObjectStore):
    access = Access(folder_store, actor="root")
    access.create_workspace("payments")
    grants = (Grant.parse("viewer:payments"), Grant.parse("caller:payments:churn"))
    token = access.create_token("cli", "labeller", grants=grants, limits=Limits(rate_per_s=5))
    principal = Access(folder_store, actor="door").verify(token)
    assert principal is not None
    assert principal.limits == Limits(rate_per_s=5)
    assert principal.may("labeller")
    assert not principal.may("viewer")
    assert principal.may("viewer", "payments")
    assert principal.may("caller", "payments", model="churn")
    assert not principal.may("caller", "payments")


def test_a_grant_in_an_unknown_workspace_is_refused(folder_store: ObjectStore):
    access = Access(folder_store, actor="root")
    with pytest.raises(NotFound, match="payments"):
        access.create_token("cli", "viewer", workspace="payments")
    with pytest.raises(InvalidInput, match="grant"):
        access.create_token("cli")
    assert access.list_tokens() == []


def test_workspaces_are_listed_changed_and_never_made_twice(folder_store: ObjectStore):
    access = Access(folder_store, actor="root", clock=lambda: START)
    made = access.create_workspace("payments", description="cards")
    assert (made.created_by, made.created_at, made.description) == ("root", START, "cards")
    with pytest.raises(AlreadyExists):
        access.create_workspace("payments")
    changed = access.change_workspace("payments", limits=Limits(max_in_flight=3))
    assert (changed.description, changed.limits.max_in_flight) == ("cards", 3)
    with pytest.raises(NotFound):
        access.change_workspace("search", description="x")
    cold = Access(folder_store, actor="door")
    assert [each.name for each in cold.list_workspaces()] == ["default", "payments"]
    assert cold.find_workspace("payments") == changed
    assert cold.find_workspace("search") is None


def test_a_workspaces_share_of_the_queue_stays_when_a_release_that_knows_none_changes_it(
    folder_store: ObjectStore,
):
    access = Access(folder_store, actor="ada")
    assert access.create_workspace("payments", queue=QueueShare(gpus=4)).queue.gpus == 4
    changed = access.change_workspace("payments", queue=QueueShare(share=3, gpus=4))
    assert (changed.queue.share, changed.description) == (3, "")
    older = {"kind": "workspace-changed", "workspace": "payments", "description": "cards", "limits": {}}
    Journal(folder_store, "access/journal", actor="older").append(older, at=2)
    found = Access(folder_store, actor="ada").find_workspace("payments")
    assert found is not None
    assert (found.description, found.queue) == ("cards", changed.queue)
    for wrong in ({"share": 0}, {"share": 1e12}, {"gpus": -1}, {"cpus": float("inf")}):
        with pytest.raises(ValidationError):
            QueueShare(**wrong)


@pytest.mark.parametrize(("role", "workspace"), [("admin", EVERY_WORKSPACE), ("predictor", "default")])
def test_a_token_of_a_release_without_workspaces_keeps_its_reach(
    folder_store: ObjectStore, role: str, workspace: str
):
    token = {"id": "abc", "name": "old", "role": role, "digest": "d", "expires_at": None}
    Journal(folder_store, "access/journal", actor="root").append({"kind": "created", "token": token}, at=0)
    (record,) = Access(folder_store, actor="door").list_tokens()
    assert record.grants == (Grant(role=Role.parse(role), workspace=workspace),)
    assert record.expires_at is None


def test_a_workspace_is_not_called_as_a_part_of_addresses_is(folder_store: ObjectStore) -> None:
    access = Access(folder_store, actor="root")
    with pytest.raises(InvalidInput, match="choose another name"):
        access.create_workspace("ui")
    for name in ("ui2", "u", "gui", "ui-team"):
        assert access.create_workspace(name).name == name
