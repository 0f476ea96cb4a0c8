"""Routes of the registry: every change is recorded with the caller's name."""

from pathlib import Path
from typing import Any

import pytest

from registry import ModelPolicy, Registry
from tests.ray_apps.gateway.conftest import Gateway


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
