"""The repository index, as tritonclient requests it."""

from pathlib import Path
from typing import Any

from tests.ray_apps.gateway.conftest import Gateway
from toque.ray_apps.gateway.routes.operations import index
from toque.registry import Registry


def two_models(registry: Registry, folder: Path) -> None:
    """Create model `one` with a champion and a canary, and `two` with a version that no policy names."""
    (folder / "model").mkdir()
    (folder / "model" / "model.json").write_text("{}")
    for name in ("one", "two"):
        registry.create_model(name)
    for _ in range(3):
        registry.create_version("one", path=folder / "model")
    registry.create_version("two", path=folder / "model")
    registry.promote("one", 1)
    registry.set_traffic("one", {"canary": (2, 0.1)})


async def test_the_index_lists_the_versions_that_policies_name(gateway: Gateway, tmp_path: Path) -> None:
    two_models(gateway.context.registry(), tmp_path)
    answer = await gateway.client.post("/v2/repository/index", headers=gateway.headers("viewer"))
    assert answer.json() == [
        {"name": "one", "version": number, "state": "UNAVAILABLE", "reason": "the model is not deployed"}
        for number in ("1", "2")
    ]
    ready = await gateway.client.post(
        "/v2/repository/index", json={"ready": True}, headers=gateway.headers("viewer")
    )
    assert ready.json() == []


def test_a_model_is_ready_by_its_own_application_or_by_the_pool(context: Any, tmp_path: Path) -> None:
    registry = context.registry()
    two_models(registry, tmp_path)
    states = [registry.get_model(name) for name in registry.list_models()]
    for deployed, state in (
        ({"predictor-one"}, "READY"),
        ({"pool"}, "READY"),
        ({"predictor-two"}, "UNAVAILABLE"),
    ):
        assert {entry.state for entry in index(states, deployed=deployed)} == {state}
