"""Layers and holdouts by HTTP."""

from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.registry import LayerShare, Registry


@pytest.fixture
def models(gateway: Gateway, tmp_path: Path) -> Registry:
    (tmp_path / "weights").write_bytes(b"1")
    registry = Registry(gateway.context.store, actor="trainer")
    for model in ("price", "ranker"):
        registry.create_model(model)
        for _ in range(2):
            registry.create_version(model, tmp_path / "weights")
        registry.set_alias(model, "champion", 1)
    return registry


async def send(gateway: Gateway, role: str, method: str, path: str, body: Any = None) -> Any:
    return await gateway.client.request(method, path, headers=gateway.headers(role), json=body)


async def test_two_models_take_disjoint_parts_of_a_layer(gateway: Gateway, models: Registry) -> None:
    split = {"arms": {"canary": {"version": 2, "share": 0.5}}, "layer": {"name": "trips", "share": 0.7}}
    made = await send(gateway, "operator", "PUT", "/models/ranker/traffic", split)
    assert made.json()["layer"] == {"name": "trips", "claim": 0, "buckets": [[0, 7000]]}
    full = await send(gateway, "operator", "PUT", "/models/price/traffic", split)
    assert (full.status_code, full.json()["type"]) == (409, "refused")
    models.claim("price", LayerShare(name="trips", share=0.2))
    assert (await send(gateway, "viewer", "GET", "/layers")).json() == ["trips"]
    assert (await send(gateway, "viewer", "GET", "/layers/trips")).json() == {
        "name": "trips",
        "free": 0.1,
        "parts": [
            {"model": "price", "share": 0.2, "buckets": [[7000, 9000]], "used": False},
            {"model": "ranker", "share": 0.7, "buckets": [[0, 7000]], "used": True},
        ],
    }
    assert (await send(gateway, "viewer", "GET", "/layers/nobodys")).json()["free"] == 1.0
    for bad in ({"name": "a/b", "share": 0.1}, {"name": "trips", "share": 0}, {"name": "trips"}):
        answer = await send(gateway, "operator", "PUT", "/models/price/traffic", split | {"layer": bad})
        assert answer.status_code == 422, answer.text


async def test_a_holdout_begins_and_ends(gateway: Gateway, models: Registry) -> None:
    path = "/models/ranker/holdouts/q4"
    assert (await send(gateway, "viewer", "PUT", path, {"share": 0.1})).status_code == 403
    begun = await send(gateway, "operator", "PUT", path, {"share": 0.1, "reason": "what do we ship?"})
    assert begun.json()["holdouts"] == [{"name": "q4", "share": 0.1}]
    other = await send(gateway, "operator", "PUT", path, {"share": 0.2})
    assert (other.status_code, "already" in other.json()["detail"]) == (409, True)
    assert (await send(gateway, "operator", "PUT", path, {"share": 1.5})).status_code == 422
    assert (
        await send(gateway, "operator", "PUT", "/models/none/holdouts/q4", {"share": 0.1})
    ).status_code == 404
    ended = await send(gateway, "operator", "DELETE", f"{path}?reason=we+know")
    assert ended.json()["holdouts"] == []
    last = models.history("ranker")[-1]
    assert (last.actor, last.body["reason"]) == ("a-operator", "we know")
