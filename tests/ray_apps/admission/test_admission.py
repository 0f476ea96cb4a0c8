"""Who passes a door, in which workspace, how often; and what is noted of those who do not."""

import asyncio
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.ray_apps.admissions import KeptRefusals
from toque.ray_apps.admission import ANY_MODEL, Admission, NotAdmitted, Rule
from toque.ray_apps.token_cache import TokenCache
from toque.registry import Access, Grant, Limits, ObjectStore, Role
from toque.registry.times import utc_now

READ = Rule((Role.viewer,))
CALL = Rule((Role.caller,))


class Door:
    """A door on a store with the workspaces `payments` and `search`."""

    def __init__(self, store: ObjectStore, recheck_s: float = 0.0) -> None:
        self.access = Access(store, actor="root")
        for name in ("payments", "search"):
            self.access.create_workspace(name)
        self.refusals = KeptRefusals()
        self.admission = Admission(
            TokenCache(self.access, recheck_s=recheck_s, patience_s=60), self.access, self.refusals
        )

    def token(self, name: str, *grants: str, **options: Any) -> bytes:
        text = self.access.create_token(name, grants=tuple(map(Grant.parse, grants)), **options)
        return f"Bearer {text}".encode()

    async def status(self, token: bytes | None, rule: Rule = READ, **options: Any) -> int:
        try:
            (await self.admission.admit(token, rule, what="GET /x", client="10.0.0.1", **options)).release()
        except NotAdmitted as refusal:
            return refusal.status
        return 200


@pytest.fixture
def door(folder_store: ObjectStore) -> Door:
    return Door(folder_store)


async def test_a_grant_opens_its_workspace_and_no_other(door: Door) -> None:
    ada = door.token("ada", "viewer:payments")
    assert await door.status(ada) == 200
    assert await door.status(ada, workspace="payments") == 200
    assert await door.status(ada, workspace="search") == 403
    assert await door.status(ada, workspace="default") == 403
    assert await door.status(ada, CALL) == 403
    assert await door.status(door.token("root", "admin:*"), workspace="search") == 200


async def test_who_may_not_enter_does_not_learn_which_workspaces_exist(door: Door) -> None:
    ada = door.token("ada", "viewer:payments")
    assert await door.status(ada, workspace="search") == await door.status(ada, workspace="no-such") == 403
    assert await door.status(door.token("root", "admin:*"), workspace="no-such") == 404


async def test_a_grant_for_one_model_opens_only_that(door: Door) -> None:
    bot = door.token("bot", "caller:payments:churn")
    assert await door.status(bot, CALL, model="churn") == 200
    assert await door.status(bot, CALL, model="fraud") == 403
    assert await door.status(bot, CALL) == 403
    assert await door.status(bot, CALL, model=ANY_MODEL) == 200
    admitted = await door.admission.admit(bot, CALL, what="gRPC", model=ANY_MODEL)
    admitted.require(Role.caller, model="churn")
    with pytest.raises(NotAdmitted, match="fraud"):
        admitted.require(Role.caller, model="fraud")


async def test_one_of_several_roles_is_enough(door: Door) -> None:
    either = Rule((Role.viewer, Role.caller))
    assert await door.status(door.token("a", "viewer:payments"), either) == 200
    assert await door.status(door.token("b", "caller:payments"), either) == 200
    assert await door.status(door.token("c", "labeller:payments"), either) == 403


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Basic abc", b"Bearer tq_0_0", b"\xff\x00"])
async def test_without_a_valid_token_nothing_opens(door: Door, header: bytes | None) -> None:
    assert await door.status(header) == 401
    (noted,) = door.refusals.kept
    assert (noted["who"], noted["status"], noted["what"], noted["client"]) == (
        None,
        401,
        "GET /x",
        "10.0.0.1",
    )


async def test_a_refusal_is_noted_with_who_and_where(door: Door) -> None:
    ada = door.token("ada", "viewer:payments")
    assert await door.status(ada, workspace="search") == 403
    (noted,) = door.refusals.kept
    assert (noted["who"], noted["status"], noted["workspace"]) == ("ada", 403, "search")
    assert "ada has viewer:payments; this needs viewer in workspace 'search'" in str(noted["why"])


async def test_a_token_keeps_to_its_requests_in_flight(door: Door) -> None:
    ada = door.token("ada", "viewer:payments", limits=Limits(max_in_flight=2))
    first, second = [await door.admission.admit(ada, READ, what="GET /x") for _ in range(2)]
    assert await door.status(ada) == 429
    first.release()
    assert await door.status(ada) == 200
    second.release()


async def test_a_token_keeps_to_its_rate(door: Door) -> None:
    ada = door.token("ada", "viewer:payments", limits=Limits(rate_per_s=0.01))
    assert await door.status(ada) == 200
    with pytest.raises(NotAdmitted) as refused:
        await door.admission.admit(ada, READ, what="GET /x")
    assert refused.value.status == 429
    assert 90 <= int(refused.value.headers["Retry-After"]) <= 100
    assert await door.status(door.token("bob", "viewer:payments")) == 200


@pytest.mark.parametrize("asked", [{"rule": CALL}, {"workspace": "search"}, {"workspace": "no-such"}])
async def test_a_tokens_rate_counts_what_is_refused(door: Door, asked: dict[str, Any]) -> None:
    slow = door.token("slow", "viewer:payments", limits=Limits(rate_per_s=0.01))
    assert [await door.status(slow, **asked) for _ in range(4)] == [403, 429, 429, 429]
    assert await door.status(slow) == 429
    single = door.token("single", "viewer:payments", limits=Limits(max_in_flight=1))
    assert [await door.status(single, **asked) for _ in range(3)] == [403, 403, 403]
    assert await door.status(single) == 200  # a refused request holds nothing


async def test_a_workspaces_limit_holds_for_its_callers_together_and_for_no_others(door: Door) -> None:
    door.access.change_workspace("payments", limits=Limits(max_in_flight=1))
    ada, bob = door.token("ada", "viewer:payments"), door.token("bob", "viewer:payments", "viewer:search")
    held = await door.admission.admit(ada, READ, what="GET /x")
    assert await door.status(bob, workspace="payments") == 429
    assert await door.status(bob, workspace="search") == 200
    held.release()
    assert await door.status(bob, workspace="payments") == 200


async def test_a_request_over_the_workspaces_limit_takes_nothing_of_the_tokens(door: Door) -> None:
    door.access.change_workspace("payments", limits=Limits(max_in_flight=1))
    ada = door.token("ada", "viewer:payments", limits=Limits(max_in_flight=5))
    held = await door.admission.admit(ada, READ, what="GET /x")
    assert [await door.status(ada) for _ in range(9)] == [429] * 9
    held.release()
    assert await door.status(ada) == 200


async def test_concurrent_requests_are_counted_each(door: Door) -> None:
    ada = door.token("ada", "viewer:payments", limits=Limits(max_in_flight=3))

    async def hold() -> int:
        try:
            admitted = await door.admission.admit(ada, READ, what="GET /x")
        except NotAdmitted as refusal:
            return refusal.status
        await asyncio.sleep(0.05)
        admitted.release()
        return 200

    assert sorted(await asyncio.gather(*(hold() for _ in range(8)))) == [200] * 3 + [429] * 5


async def test_a_decision_that_is_kept_ends_with_the_token_and_counts_limits(
    folder_store: ObjectStore,
) -> None:
    door = Door(folder_store, recheck_s=3600)
    ada = door.token("ada", "viewer:payments")
    first = await door.admission.admit(ada, READ, what="GET /x")
    assert await door.admission.admit(ada, READ, what="GET /x") is first
    assert await door.status(ada, CALL) == 403
    assert await door.status(ada, workspace="search") == 403
    door.access.change_workspace("payments", limits=Limits(max_in_flight=1))
    held = await door.admission.admit(ada, READ, what="GET /x")
    assert await door.status(ada) == 429
    held.release()
    door.access.revoke("ada")
    door.admission.tokens.forget()
    door.access.list_tokens()  # read again, as every process does within a second
    assert await door.status(ada) == 401


def test_refusals_are_counted_from_zero() -> None:
    # a series that begins with its first refusal has not increased by it, as Prometheus sees it
    code = """
from prometheus_client import REGISTRY
import toque.ray_apps.admission
print([REGISTRY.get_sample_value("toque_access_refusals_total", {"status": each}) for each in ("401", "403", "429")])
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[0.0, 0.0, 0.0]"


def expired_refusals(name: str) -> float:
    return REGISTRY.get_sample_value("toque_expired_token_refusals_total", {"name": name}) or 0.0


async def test_only_who_holds_an_expired_token_is_counted_as_its_user(folder_store: ObjectStore) -> None:
    """Beside it: no token, a malformed one, its id with another secret, a live token and one that was revoked."""
    late = timedelta(0)
    access = Access(folder_store, actor="root", clock=lambda: utc_now() + late)
    admission = Admission(TokenCache(access, recheck_s=0.0, patience_s=60), access, KeptRefusals())
    ends = utc_now() + timedelta(hours=1)
    old, revoked = (access.create_token(name, "viewer", expires_at=ends) for name in ("old-ci", "revoked-ci"))
    live = access.create_token("old-ci-2", "viewer")
    access.revoke("revoked-ci")
    late = timedelta(hours=2)
    others = [None, b"Bearer x", *(f"Bearer {text}".encode() for text in (old[:-1], old + "x", revoked))]
    names = ("old-ci", "old-ci-2", "revoked-ci")
    before = [expired_refusals(name) for name in names]
    assert (
        await admission.admit(f"Bearer {live}".encode(), READ, what="GET /x")
    ).principal.name == "old-ci-2"
    for header in [*others, *[f"Bearer {old}".encode()] * 2]:
        with pytest.raises(NotAdmitted, match="authorization"):
            await admission.admit(header, READ, what="GET /x")
    after = [expired_refusals(name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 0, 0]
