"""Two teams on one gateway: neither sees nor moves anything of the other's."""

import types
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ray_apps.gateway.conftest import Gateway, MemoryLabelLog
from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.functions import context, function
from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry import Access, open_store

TEAMS = ("payments", "search")


def declare(module: str, name: str) -> Any:
    """Declare a function `name` of a project's module, which says where it ran."""
    there = types.ModuleType(module)

    def body(a: int = 0) -> list[str]:
        return [module, context().workspace, context().actor]

    body.__name__ = body.__qualname__ = name
    body.__module__ = module
    return function(http=True)(body), there


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Projects of the two teams, each with a function of the same name and one of its own."""
    declared = {name: dict(named) for name, named in catalog._declared.items()}
    monkeypatch.setattr(catalog, "_declared", declared)
    for team in TEAMS:
        declare(f"teams_{team}", "greet")
        declare(f"teams_{team}", f"only_{team}")
    return


@pytest.fixture
async def gateway(tmp_path: Path, teams: None) -> Any:
    url = f"file://{tmp_path / 'store'}"
    projects = tuple((team, f"teams_{team}") for team in TEAMS)
    platform = Context(open_store(url), url, actor="platform", projects=projects)
    access = Access(platform.store, actor="tests")
    for team in TEAMS:
        access.create_workspace(team)
    tokens = {team: access.create_token(f"{team}-admin", "admin", workspace=team) for team in TEAMS}
    tokens["root"] = access.create_token("root", "admin", workspace="*")
    tokens["default"] = access.create_token("default-admin", "admin")
    tokens["narrow"] = access.create_token("narrow", "viewer", workspace="payments", model="fraud")
    labels: dict[str, MemoryLabelLog] = {}
    services = Services(
        context=platform, labels=lambda name: labels.setdefault(name, MemoryLabelLog()), access=access
    )
    app = build_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Gateway(platform, tokens, labels, client, app)


def fill(platform: Context, team: str, files: Path) -> None:
    """Give a team a model, a feature view and an invocation."""
    there = replace(platform.in_workspace(team), actor=f"{team}-admin")
    files.mkdir(exist_ok=True)
    (files / "weights.bin").write_bytes(team.encode())
    there.registry().create_model("fraud" if team == "payments" else "rank")
    there.registry().create_version("fraud" if team == "payments" else "rank", files)
    view = FeatureView(
        f"{team}_view",
        entities=[Entity("card", join_keys=["card"])],
        schema=[Field("amount", Float64)],
        ttl=timedelta(days=1),
    )
    there.features().apply([view])


async def ask(gateway: Gateway, who: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
    given = {"Authorization": f"Bearer {gateway.tokens[who]}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.request(method, path, json=body, headers=given)


async def test_each_team_reads_and_writes_its_own_alone(gateway: Gateway, tmp_path: Path) -> None:
    for team in TEAMS:
        fill(gateway.context, team, tmp_path / "files")
        sent = await ask(gateway, team, "POST", "/functions/greet", {}, Prefer="respond-async")
        assert sent.status_code == 202, sent.text
        sent = await ask(gateway, team, "POST", "/feedback", [{"prediction_id": team, "label": 1}])
        assert sent.status_code == 200, sent.text
    own = {
        "/models": ("fraud", "rank"),
        "/invocations": ("payments-admin", "search-admin"),
        "/v2/repository/index": ("", ""),
        "/layers": ("", ""),
        "/costs": ("", ""),
    }
    for path, (of_payments, of_search) in own.items():
        method = "POST" if path.endswith("index") else "GET"
        theirs = await ask(gateway, "payments", method, path)
        assert theirs.status_code == 200, (path, theirs.text)
        assert of_payments in theirs.text
        assert not of_search or of_search not in theirs.text, path
        nobodys = await ask(gateway, "default", method, path)
        assert nobodys.json() == [], path
    assert set(gateway.labels) == set(TEAMS)
    pushed = {
        "rows": [{"card": "1", "amount": 2.0, "event_timestamp": "2026-01-01T00:00:00Z"}],
        "to": "offline",
    }
    assert (await ask(gateway, "payments", "POST", "/features/payments_view/push", pushed)).status_code == 200
    assert (await ask(gateway, "payments", "POST", "/features/search_view/push", pushed)).status_code == 404


async def test_nothing_of_another_team_can_be_reached_by_its_name(gateway: Gateway, tmp_path: Path) -> None:
    for team in TEAMS:
        fill(gateway.context, team, tmp_path / "files")
    sent = await ask(gateway, "search", "POST", "/functions/greet", {}, Prefer="respond-async")
    theirs = sent.json()["id"]
    for method, path in [
        ("GET", "/models/rank"),
        ("GET", "/models/rank/versions/1"),
        ("POST", "/models/rank/versions/1/approve"),
        ("PUT", "/models/rank/aliases/champion"),
        ("GET", f"/invocations/{theirs}"),
        ("GET", f"/invocations/{theirs}/logs"),
        ("DELETE", f"/invocations/{theirs}"),
        ("POST", f"/invocations/{theirs}/signals/go"),
        ("POST", "/functions/only_search"),
        ("GET", "/functions/only_search"),
        ("GET", "/functions/teams_search:only_search"),
    ]:
        body = {"version": 1} if method == "PUT" else {} if method == "POST" else None
        answer = await ask(gateway, "payments", method, path, body)
        assert answer.status_code == 404, (method, path, answer.text)
        assert "teams_search" not in answer.json()["detail"].replace(path.rpartition("/")[2], "")
        for named in ({"X_Toque_Workspace": "search"}, {"X_Toque_Workspace": "default"}):
            refused = await ask(gateway, "payments", method, path, body, **named)
            assert refused.status_code == 403, (method, path, refused.text)
        prefixed = await ask(gateway, "payments", method, f"/workspaces/search{path}", body)
        assert prefixed.status_code == 403


async def test_functions_of_one_name_belong_to_their_teams(gateway: Gateway) -> None:
    for team in TEAMS:
        ran = await ask(gateway, team, "POST", "/functions/greet", {})
        assert ran.json() == [f"teams_{team}", team, f"{team}-admin"]
        document = (await ask(gateway, team, "GET", "/openapi.json")).json()
        assert f"/functions/only_{team}" in document["paths"]
        assert {path for path in document["paths"] if "only_" in path} == {f"/functions/only_{team}"}
        listed = (await ask(gateway, team, "GET", "/functions")).json()
        assert [each["name"] for each in listed if each["reference"].startswith("teams_")] == [
            "greet",
            f"only_{team}",
        ]
    assert (await ask(gateway, "default", "POST", "/functions/greet", {})).status_code == 404
    root = await ask(gateway, "root", "POST", "/functions/greet", {}, X_Toque_Workspace="search")
    assert root.json() == ["teams_search", "search", "root"]


async def test_a_path_below_a_workspace_is_the_gateways_own_in_it(gateway: Gateway, tmp_path: Path) -> None:
    fill(gateway.context, "payments", tmp_path / "files")
    below = "/workspaces/payments"
    for path in ("/v2/health/ready", "/v2/health/live", "/v2"):
        assert (await ask(gateway, "payments", "GET", f"{below}{path}")).status_code == 200
    models = await ask(gateway, "root", "GET", f"{below}/models", X_Toque_Workspace="search")
    assert [each["name"] for each in models.json()] == ["fraud"]  # the path goes before the header
    index = await ask(gateway, "payments", "POST", f"{below}/v2/repository/index", {})
    assert index.status_code == 200
    sent = await ask(gateway, "payments", "POST", f"{below}/functions/greet", {}, Prefer="respond-async")
    assert sent.headers["location"] == f"{below}/invocations/{sent.json()['id']}"
    assert (await ask(gateway, "payments", "GET", sent.headers["location"])).status_code == 200
    unknown = await ask(gateway, "payments", "GET", f"{below}/v2/nowhere")
    assert (unknown.status_code, unknown.json()["instance"]) == (404, f"{below}/v2/nowhere")
    assert "error" in unknown.json()
    assert (await gateway.client.get(f"{below}/models")).status_code == 401
    for strange in ("/workspaces//models", "/workspaces/No Such/models", "/workspaces/%2e%2e/models"):
        assert (await ask(gateway, "root", "GET", strange)).status_code in {404, 403}, strange


async def test_who_asks_at_the_wrong_path_for_a_model_is_told_the_right_one(
    gateway: Gateway, tmp_path: Path
) -> None:
    fill(gateway.context, "payments", tmp_path / "files")
    asked = await ask(gateway, "payments", "POST", "/v2/models/fraud/infer", {})
    assert asked.status_code == 404
    assert "/workspaces/payments/v2/models/fraud" in asked.json()["error"]
    unserved = await ask(gateway, "payments", "POST", "/workspaces/payments/v2/models/fraud/infer", {})
    assert "is not served in workspace 'payments'" in unserved.json()["error"]
    others = await ask(gateway, "search", "POST", "/v2/models/fraud/infer", {})
    assert "/workspaces/payments" not in others.text


async def test_a_token_for_one_model_reaches_that_model_alone(gateway: Gateway, tmp_path: Path) -> None:
    fill(gateway.context, "payments", tmp_path / "files")
    there = gateway.context.in_workspace("payments").registry()
    there.create_model("other")
    for path, status in [
        ("/models/fraud", 200),
        ("/models/fraud/versions", 200),
        ("/models/other", 403),
        ("/models", 403),
        ("/invocations", 403),
        ("/functions", 403),
        ("/tokens", 403),
        ("/workspaces", 200),
        ("/v2", 200),
    ]:
        assert (await ask(gateway, "narrow", "GET", path)).status_code == status, path


async def test_metrics_of_the_process_take_a_viewer_of_the_default_workspace(gateway: Gateway) -> None:
    for who, status in [("payments", 403), ("narrow", 403), ("default", 200), ("root", 200)]:
        assert (await ask(gateway, who, "GET", "/metrics")).status_code == status
