"""Tokens that admins give within their reach, and workspaces."""

from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.registry import Access, Role
from toque.registry.access import Grant


async def ask(gateway: Gateway, who: str, method: str, path: str, body: Any = None) -> Any:
    return await gateway.client.request(method, path, headers=gateway.headers(who), json=body)


@pytest.fixture
def payments(gateway: Gateway) -> Access:
    """A workspace beside the default one, with an admin."""
    access: Access = gateway.app.state.services.access_list
    access.create_workspace("payments")
    gateway.tokens["lead"] = access.create_token("lead", "admin", workspace="payments")
    return access


async def test_a_token_is_made_with_grants_limits_and_an_end(gateway: Gateway, payments: Access) -> None:
    body = {
        "name": "web",
        "role": "predictor",
        "workspace": "payments",
        "model": "fraud",
        "grants": ["viewer:payments", "labeller:payments"],
        "limits": {"rate_per_s": 50, "max_in_flight": 8},
        "expires_at": "never",
    }
    made = await ask(gateway, "root", "POST", "/tokens", body)
    assert made.status_code == 201, made.text
    assert made.json()["grants"] == ["caller:payments:fraud", "viewer:payments", "labeller:payments"]
    assert (made.json()["role"], made.json()["expires_at"]) == ("caller", None)
    principal = payments.verify(made.json()["token"])
    assert principal is not None
    assert principal.may(Role.caller, "payments", model="fraud")
    assert not principal.may(Role.caller, "payments", model="other")
    listed = {each["name"]: each for each in (await ask(gateway, "root", "GET", "/tokens")).json()}
    assert listed["web"]["limits"] == {"rate_per_s": 50, "max_in_flight": 8}
    assert listed["web"]["last_used_at"] is not None
    assert listed["a-viewer"]["last_used_at"] is None
    assert all("digest" not in each for each in listed.values())


async def test_a_token_ends_in_ninety_days_unless_it_says_otherwise(gateway: Gateway) -> None:
    made = await ask(gateway, "root", "POST", "/tokens", {"name": "web", "role": "viewer"})
    listed = {each["name"]: each for each in (await ask(gateway, "root", "GET", "/tokens")).json()}
    assert listed["web"]["expires_at"] == made.json()["expires_at"] is not None


@pytest.mark.parametrize(
    ("who", "body", "status"),
    [
        ("lead", {"role": "operator"}, 201),
        ("lead", {"role": "admin", "workspace": "payments"}, 201),
        ("lead", {"role": "viewer", "workspace": "default"}, 403),
        ("lead", {"role": "viewer", "workspace": "*"}, 403),
        ("lead", {"role": "viewer", "grants": ["viewer:default"]}, 403),
        ("admin", {"role": "admin"}, 201),
        ("admin", {"role": "viewer", "workspace": "payments"}, 403),
        ("admin", {"grants": ["admin:*"]}, 403),
        ("root", {"role": "admin", "workspace": "*"}, 201),
        ("root", {"role": "viewer", "workspace": "nowhere"}, 404),
        ("root", {"grants": []}, 409),
        ("root", {"model": "fraud", "grants": ["viewer"]}, 409),
        ("root", {"grants": ["cook:payments"]}, 422),
        ("root", {"grants": ["viewer:Payments"]}, 422),
        ("root", {"grants": ["viewer:-payments"]}, 422),
        ("root", {"grants": ["caller:payments:.fraud"]}, 422),
        ("root", {"grants": ["caller:*:fraud"]}, 201),
        ("root", {"role": "labeller", "model": "fraud"}, 409),
        ("approver", {"role": "viewer"}, 403),
    ],
)
async def test_an_admin_gives_only_what_lies_within_its_reach(
    gateway: Gateway, payments: Access, who: str, body: dict[str, Any], status: int
) -> None:
    answer = await ask(gateway, who, "POST", "/tokens", {"name": "eve"} | body)
    assert answer.status_code == status, answer.text
    given = [each.name for each in payments.list_tokens() if each.name == "eve"]
    assert given == (["eve"] if status == 201 else [])


async def test_an_admin_of_a_workspace_makes_tokens_for_it(gateway: Gateway, payments: Access) -> None:
    made = await ask(gateway, "lead", "POST", "/tokens", {"name": "bob", "role": "viewer"})
    assert made.json()["grants"] == ["viewer:payments"]


async def test_an_admin_lists_and_revokes_only_tokens_within_its_reach(
    gateway: Gateway, payments: Access
) -> None:
    payments.create_token("both", grants=[Grant.parse("viewer:payments"), Grant.parse("viewer:default")])
    payments.create_token("bob", "viewer", workspace="payments")
    listed = (await ask(gateway, "lead", "GET", "/tokens")).json()
    assert {each["name"] for each in listed} == {"lead", "bob"}
    for name, status in [("both", 404), ("a-viewer", 404), ("root", 404), ("nobody", 404), ("bob", 204)]:
        assert (await ask(gateway, "lead", "DELETE", f"/tokens/{name}")).status_code == status, name
    assert (await ask(gateway, "root", "DELETE", "/tokens/both")).status_code == 204


async def test_only_an_admin_of_all_workspaces_makes_and_changes_them(
    gateway: Gateway, payments: Access
) -> None:
    body = {"name": "search", "description": "Finds things.", "limits": {"rate_per_s": 100}}
    for who in ("lead", "admin", "operator"):
        assert (await ask(gateway, who, "POST", "/workspaces", body)).status_code == 403
        assert (await ask(gateway, who, "PATCH", "/workspaces/payments", {})).status_code == 403
    made = await ask(gateway, "root", "POST", "/workspaces", body)
    assert (made.status_code, made.json()["created_by"]) == (201, "root")
    assert (await ask(gateway, "root", "POST", "/workspaces", body)).status_code == 409
    changed = await ask(gateway, "root", "PATCH", "/workspaces/search", {"description": "Ranks."})
    assert changed.json()["description"] == "Ranks."
    assert changed.json()["limits"] == {"rate_per_s": 100, "max_in_flight": None}
    assert (await ask(gateway, "root", "PATCH", "/workspaces/nowhere", {})).status_code == 404
    assert (await ask(gateway, "root", "POST", "/workspaces", {"name": "No Such"})).status_code == 422


async def test_a_caller_sees_the_workspaces_that_it_has_a_grant_in(
    gateway: Gateway, payments: Access
) -> None:
    payments.create_workspace("search")
    both = [Grant.parse("labeller:payments"), Grant.parse("caller:search:rank")]
    gateway.tokens["both"] = payments.create_token("both", grants=both)
    every = ["default", "payments", "search"]
    for who, names in [
        ("lead", ["payments"]),
        ("labeller", ["default"]),
        ("both", every[1:]),
        ("root", every),
    ]:
        listed = (await ask(gateway, who, "GET", "/workspaces")).json()
        assert [each["name"] for each in listed] == names
        for name in every:
            answer = await ask(gateway, who, "GET", f"/workspaces/{name}")
            assert (answer.status_code == 200) == (name in names)
