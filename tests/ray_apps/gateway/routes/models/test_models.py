"""Routes of the registry: every change is recorded with the caller's name."""

from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.registry import ModelPolicy, Registry


@pytest.fixture
def late(gateway: Gateway, tmp_path: Path) -> Any:
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights.bin").write_bytes(b"1")
    registry = Registry(gateway.context.store, actor="trainer")
    registry.create_model("late", policy=ModelPolicy(guarded=frozenset({"champion"})))
    for _ in range(3):
        registry.create_version("late", files, metrics={"log_loss": 0.4})
    return registry


async def send(gateway: Gateway, role: str, method: str, path: str, **body: Any) -> Any:
    return await gateway.client.request(method, path, headers=gateway.headers(role), json=body)


async def test_a_version_is_approved_promoted_split_and_rolled_back(gateway: Gateway, late: Registry) -> None:
    refused = await send(gateway, "operator", "POST", "/models/late/promote", version=1)
    assert (refused.status_code, refused.json()["type"]) == (409, "refused")
    for version in (1, 2, 3):
        approved = await send(
            gateway, "approver", "POST", f"/models/late/versions/{version}/approve", comment="fine"
        )
        assert approved.json()["approvals"][0]["actor"] == "a-approver"
    for version in (1, 2):
        promoted = await send(
            gateway, "operator", "POST", "/models/late/promote", version=version, reason="better"
        )
        assert promoted.status_code == 200, promoted.text
    split = await send(
        gateway,
        "operator",
        "PUT",
        "/models/late/traffic",
        arms={"canary": {"version": 3, "share": 0.1}},
        shadows=[1],
    )
    assert [(arm["name"], arm["version"]) for arm in split.json()["arms"]] == [("champion", 2), ("canary", 3)]
    read = await gateway.client.get("/models/late/traffic", headers=gateway.headers("viewer"))
    assert read.json() == split.json()
    back = await send(gateway, "operator", "POST", "/models/late/aliases/champion/rollback", reason="hm")
    assert back.json()["version"] == 1
    assert late.history("late")[-1].actor == "a-operator"


async def test_an_unexpected_alias_target_is_a_conflict(gateway: Gateway, late: Registry) -> None:
    path = "/models/late/aliases/blue"
    assert (await send(gateway, "operator", "PUT", path, version=1, expected=None)).status_code == 200
    stale = await send(gateway, "operator", "PUT", path, version=2, expected=None)
    assert (stale.status_code, stale.json()["type"]) == (409, "stale")
    assert "it is 1 now" in stale.json()["detail"]
    assert (await send(gateway, "operator", "PUT", path, version=2)).status_code == 200


async def test_models_and_versions_are_read_by_number_and_alias(gateway: Gateway, late: Registry) -> None:
    late.set_alias("late", "blue", 2)
    viewer = gateway.headers("viewer")
    [model] = (await gateway.client.get("/models", headers=viewer)).json()
    assert (model["name"], model["versions"], model["aliases"]) == ("late", [1, 2, 3], {"blue": 2})
    for key in ("2", "blue"):
        version = (await gateway.client.get(f"/models/late/versions/{key}", headers=viewer)).json()
        assert (version["version"], version["metrics"]) == (2, {"log_loss": 0.4})
    assert len((await gateway.client.get("/models/late/versions", headers=viewer)).json()) == 3
    kinds = [
        entry["body"]["kind"]
        for entry in (await gateway.client.get("/models/late/history?limit=2", headers=viewer)).json()
    ]
    assert len(kinds) == 2
    for path in ("/models/none", "/models/late/versions/9", "/models/late/traffic"):
        assert (await gateway.client.get(path, headers=viewer)).status_code == 404, path


async def test_an_alias_is_read_at_a_past_moment(gateway: Gateway, late: Registry) -> None:
    late.set_alias("late", "blue", 2)
    viewer = gateway.headers("viewer")
    now = await gateway.client.get("/models/late/aliases/blue", headers=viewer)
    then = await gateway.client.get("/models/late/aliases/blue?at=2000-01-01T00:00:00Z", headers=viewer)
    naive = await gateway.client.get("/models/late/aliases/blue?at=2000-01-01T00:00:00", headers=viewer)
    assert (now.json()["version"], then.json()["version"], naive.status_code) == (2, None, 422)


@pytest.mark.parametrize(
    "body",
    [
        {"arms": {"canary": {"version": 1, "share": 1.5}}},
        {"arms": {"canary": {"version": "x", "share": 0.5}}},
        {"arms": {"canary": {"version": 10**30, "share": 0.5}}},
        {"armes": {}},
        {"rules": [{"name": "eu", "to": 1, "when": []}]},
        {"rules": [{"name": "eu", "to": 1, "when": [{"attribute": "a", "op": "like", "values": ["x"]}]}]},
        {"shadows": [0]},
    ],
)
async def test_an_invalid_split_names_its_field(
    gateway: Gateway, late: Registry, body: dict[str, Any]
) -> None:
    answer = await gateway.client.put("/models/late/traffic", headers=gateway.headers("operator"), json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("body.")


async def test_a_body_that_fits_its_schema_and_breaks_a_rule_is_a_conflict(
    gateway: Gateway, late: Registry
) -> None:
    answer = await send(gateway, "admin", "PUT", "/models/late/policy", signers=["no key"])
    assert (answer.status_code, "signers" in answer.json()["detail"]) == (409, True)
    answer = await send(gateway, "admin", "PUT", "/models/late/policy", signers="no list")
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "body", [{"keep_texts": False}, {"keep_texts": "0.5"}, {"approvals": True}, {"author_may_approve": 1}, {}]
)
async def test_a_policy_is_neither_converted_nor_wiped(
    gateway: Gateway, late: Registry, body: dict[str, Any]
) -> None:
    before = late.set_policy("late", ModelPolicy(guarded=frozenset({"champion"}), approvals=2)).policy
    answer = await send(gateway, "admin", "PUT", "/models/late/policy", **body)
    assert answer.status_code == (422 if body else 409)
    assert late.get_model("late").policy == before


async def test_a_policy_that_changed_meanwhile_is_not_replaced(gateway: Gateway, late: Registry) -> None:
    path, headers = "/models/late/policy", gateway.headers("admin")
    read = (await gateway.client.get(path, headers=headers)).headers["etag"]
    for body, status in (({"approvals": 2}, 200), ({"approvals": 0}, 409)):
        answer = await gateway.client.put(path, headers={**headers, "If-Match": read}, json=body)
        assert answer.status_code == status
    assert late.get_model("late").policy.approvals == 2
    newest = answer_tag = (await gateway.client.get(path, headers=headers)).headers["etag"]
    answer = await gateway.client.put(path, headers={**headers, "If-Match": newest}, json={"approvals": 0})
    assert (answer.status_code, answer.headers["etag"] != answer_tag) == (200, True)


async def test_only_an_admin_overrides_the_policy(gateway: Gateway, late: Registry) -> None:
    late.set_policy("late", ModelPolicy())
    late.promote("late", 3)
    late.set_policy("late", ModelPolicy(guarded=frozenset({"champion"})))
    split = {"arms": {"canary": {"version": 2, "share": 0.1}}}
    for method, path, body in (
        ("POST", "/models/late/promote", {"version": 1}),
        ("PUT", "/models/late/aliases/champion", {"version": 1}),
        ("PUT", "/models/late/traffic", split),
    ):
        for role in ("operator", "approver"):
            refused = await send(gateway, role, method, path, **body, override="in a hurry")
            assert refused.status_code == 403, path
            assert "an override of late's policy needs admin" in refused.json()["detail"]
    assert late.get_version("late", "champion").version == 3
    marked = await send(gateway, "admin", "POST", "/models/late/promote", version=1, override="site is down")
    assert [(mark["actor"], mark["reason"]) for mark in marked.json()["overrides"]] == [
        ("a-admin", "site is down")
    ]


async def test_an_approver_accepts_code_by_name(gateway: Gateway, late: Registry, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"x")
    late.create_version("late", tmp_path / "model.pkl", allow_code=["model.pkl"])
    path = "/models/late/versions/4/approve"
    unknown = await send(gateway, "approver", "POST", path, accept_code=["other.pkl"])
    assert (unknown.status_code, unknown.json()["type"]) == (409, "invalid-input")
    accepted = await send(gateway, "approver", "POST", path, accept_code=["model.pkl"])
    assert accepted.json()["approvals"][0]["accept_code"] == ["model.pkl"]
    assert late.accepted_code("late", 4) == ("model.pkl",)


async def test_a_policys_limits_must_be_those_of_a_gate(gateway: Gateway, late: Registry) -> None:
    path, gate = "/models/late/policy", {"name": "offline", "limits": {"min_rows": 500}}
    wrong = await send(gateway, "admin", "PUT", path, gates=[{"name": "offline", "limits": {"min_row": 500}}])
    assert (wrong.status_code, "min_row" in wrong.json()["detail"]) == (409, True)
    nameless = await send(gateway, "admin", "PUT", path, gates=[""])
    assert (nameless.status_code, "is not a name" in nameless.json()["detail"]) == (409, True)
    for role, status in (("operator", 403), ("admin", 200)):
        assert (await send(gateway, role, "PUT", path, gates=[gate])).status_code == status
    read = (await send(gateway, "viewer", "GET", path)).json()
    assert read["gates"] == [{**gate, "data": None}]


async def test_only_an_admin_overrides_a_policy_by_the_function_as_by_the_route(gateway: Gateway) -> None:
    arguments = {"model": "late", "version": 1, "override": "an emergency"}
    for path in ("/functions/promote_version", "/models/late/promote"):
        body = arguments if path.startswith("/functions") else {"version": 1, "override": "an emergency"}
        for role, refused in (("operator", True), ("admin", False)):
            answer = await gateway.client.post(path, json=body, headers=gateway.headers(role))
            assert (answer.status_code == 403) is refused, (path, role, answer.text)
            assert ("an override of late's policy needs admin: ask one" in answer.text) is refused
    durable = {"Prefer": "respond-async"} | gateway.headers("operator")
    assert (
        await gateway.client.post("/functions/promote_version", json=arguments, headers=durable)
    ).status_code == 403
