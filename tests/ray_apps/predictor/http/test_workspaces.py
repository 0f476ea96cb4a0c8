"""Who may do what at a model's endpoint and at a pool, by role, workspace and model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE, load_fake_scorer, tensors
from toque.functions.prediction_log import default_wal_root
from toque.ray_apps.predictor import PoolOptions, PredictorOptions
from toque.ray_apps.predictor.deploy.deployment import build_pool, build_predictor
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.registry import Access, Registry, open_store
from toque.registry.access import Grant, workspace_store

TEAM = "/workspaces/team/v2/models"
GRANTS = {
    "viewer": ["viewer:team"], "caller": ["caller:team"], "caller of late": ["caller:team:late"],
    "viewer of late": ["viewer:team:late"], "labeller": ["labeller:team"], "operator": ["operator:team"],
    "elsewhere": ["admin:other"], "default": ["caller:default"], "admin": ["admin:*"],
    "both": ["caller:team", "caller:other"],
}  # fmt: skip
READERS = {"viewer", "caller", "operator", "admin", "both"}
CALLERS = {"caller", "operator", "admin", "both"}
OF_LATE = {"viewer": {"viewer of late", "caller of late"}, "caller": {"caller of late"}}


@pytest.fixture
async def platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """The models `late` and `early` of the workspace `team`, and one `late` of the default workspace in a pool each."""
    monkeypatch.setattr("toque.ray_apps.predictor.deploy.deployment.tried_first", lambda *_: load_fake_scorer)
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    access = Access(store, actor="root")
    for name in ("team", "other"):
        access.create_workspace(name)
    tokens = {
        who: access.create_token(who.replace(" ", "-"), grants=[Grant.parse(grant) for grant in grants])
        for who, grants in GRANTS.items()
    }
    (tmp_path / "model.json").write_text('{"value": 0.25}')
    for workspace, names in (("team", ("late", "early")), ("default", ("late",))):
        registry = Registry(workspace_store(store, workspace), actor="ada")
        for name in names:
            registry.create_model(name)
            version = registry.create_version(name, path=tmp_path / "model.json", signature=SIGNATURE)
            registry.promote(name, version.version)
    options: dict[str, Any] = {"store_url": url, "workspace": "team"}
    model, pool = build_predictor("late", PredictorOptions(**options)), build_pool(PoolOptions(**options))
    router = EndpointRouter({"late": model, "": pool}, pool.auth, "team")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(router), base_url="http://replica") as client:
        yield client, tokens
    await model.close()
    await pool.close()


@pytest.mark.parametrize("model", ["late", "early"])  # in replicas of its own, and in the pool
async def test_each_route_is_open_to_its_roles_alone(platform: Any, model: str):
    client, tokens = platform
    of_model = OF_LATE if model == "late" else {"viewer": set(), "caller": set()}
    routes = {"": "viewer", "/ready": "viewer", "/config": "viewer", "/stats": "viewer", "/status": "viewer",
              "/versions/1": "viewer", "/infer": "caller", "/versions/1/infer": "caller"}  # fmt: skip
    for route, role in routes.items():
        allowed = (READERS if role == "viewer" else CALLERS) | of_model[role]
        found = set()
        for who, token in tokens.items():
            headers = {"Authorization": f"Bearer {token}"}
            if role == "caller":
                answer = await client.post(f"{TEAM}/{model}{route}", json=tensors(), headers=headers)
            else:
                answer = await client.get(f"{TEAM}/{model}{route}", headers=headers)
            assert answer.status_code in {200, 403}, (route, who, answer.text)
            found |= {who} if answer.status_code == 200 else set()
        assert found == allowed, route


async def test_a_caller_of_another_workspace_is_told_where_its_models_are(platform: Any):
    client, tokens = platform
    answer = await client.post(
        f"{TEAM}/late/infer", json=tensors(), headers={"Authorization": f"Bearer {tokens['default']}"}
    )
    assert answer.status_code == 403
    assert answer.json()["error"].endswith("its own models are below /v2/models")
    answer = await client.get(f"{TEAM}/early", headers={"Authorization": f"Bearer {tokens['elsewhere']}"})
    assert answer.json()["error"].endswith("its own models are below /workspaces/other/v2/models")


@pytest.mark.parametrize("model", ["late", "early"])
async def test_a_request_that_names_another_workspace_is_told_the_right_path(platform: Any, model: str):
    client, tokens = platform
    headers = {"Authorization": f"Bearer {tokens['both']}", "X-Toque-Workspace": "other"}
    answer = await client.post(f"{TEAM}/{model}/infer", json=tensors(), headers=headers)
    assert answer.status_code == 404
    assert f"the path for 'other' is /workspaces/other/v2/models/{model}" in answer.json()["error"]
    headers["X-Toque-Workspace"] = "team"
    assert (await client.post(f"{TEAM}/{model}/infer", json=tensors(), headers=headers)).status_code == 200
    headers = {"X-Toque-Workspace": "other"}  # nothing without a token
    assert (await client.post(f"{TEAM}/{model}/infer", json=tensors(), headers=headers)).status_code == 401


async def test_pinning_an_arm_takes_a_caller(platform: Any):
    client, tokens = platform
    for who, status in (("viewer", 403), ("caller", 200)):
        headers = {"Authorization": f"Bearer {tokens[who]}", "X-Toque-Arm": "champion"}
        answer = await client.post(f"{TEAM}/late/infer", json=tensors(), headers=headers)
        assert answer.status_code == status


def test_the_log_of_a_workspace_has_its_own_folder(tmp_path: Path):
    url = f"file://{tmp_path}/store"
    ours = PredictorOptions(store_url=url, workspace="team").wal
    assert ours == default_wal_root(f"{url}/workspaces/team") != PredictorOptions(store_url=url).wal
