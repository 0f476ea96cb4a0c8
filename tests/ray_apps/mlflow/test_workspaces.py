"""Workspaces by MLflow's protocol: each request reaches one team's part of the platform, and no route another's."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.ray_apps.mlflow.conftest import TrackingServer, run_client
from toque.ray_apps.admission.guarded_route import rule_of
from toque.ray_apps.mlflow import build_app
from toque.ray_apps.mlflow.app import build
from toque.registry import Access, Grant, Registry, open_store, workspace_store

GRANTS = {
    "ada": ["operator:payments"],
    "bob": ["operator:fraud"],
    "vera": ["viewer:payments"],
    "eve": ["caller:payments", "labeller:payments"],
    "both": ["operator:payments", "viewer:fraud"],
    "narrow": ["operator:payments:late"],
    "root": ["admin:*"],
    "lead": ["admin:payments"],
    "old": ["operator"],
}


@dataclass
class Platform:
    """The application, a token for each person of GRANTS, and the registry of each workspace."""

    folder: Path
    app: Starlette
    tokens: dict[str, str]
    http: httpx.AsyncClient
    workspace: str | None = None

    def registry(self, workspace: str) -> Registry:
        return Registry(workspace_store(open_store(f"file://{self.folder}/store"), workspace), actor="test")

    async def send(
        self, who: str, method: str, path: str, *, workspace: str | None = None, **kwargs: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who else {}
        headers |= {"X-MLFLOW-WORKSPACE": workspace} if workspace else {}
        headers |= {"Content-Type": "application/json"} if "content" in kwargs else {}
        base = "/api/" if path.startswith(("3.0", "2.0")) else "/api/2.0/mlflow/"
        return await self.http.request(method, base + path, headers=headers, **kwargs)

    async def post(self, who: str, path: str, *, workspace: str | None = None, **body: Any) -> Any:
        answer = await self.send(who, "POST", path, workspace=workspace, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def run_with_file(self, who: str, data: bytes, **fields: Any) -> str:
        run = str((await self.post(who, "runs/create", **fields))["run"]["info"]["run_id"])
        path = f"2.0/mlflow-artifacts/artifacts/runs/{run}/model/weights"
        assert (await self.send(who, "PUT", path, content=data)).status_code == 200
        return run

    async def model(self, who: str, name: str, data: bytes = b"w") -> str:
        run = await self.run_with_file(who, data)
        await self.post(who, "registered-models/create", name=name)
        await self.post(who, "model-versions/create", name=name, source=f"runs:/{run}/model")
        return run


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    store = open_store(f"file://{tmp_path}/store")
    access = Access(store, actor="root")
    for name in ("payments", "fraud"):
        access.create_workspace(name)
    tokens = {
        name: access.create_token(name, grants=list(map(Grant.parse, texts)))
        for name, texts in GRANTS.items()
    }
    app = Starlette(routes=[Mount("/api", build_app(store))])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://toque") as http:
        yield Platform(tmp_path, app, tokens, http)


def routes() -> Iterator[tuple[str, str]]:
    """Every method and path of the application, with a value in place of each parameter."""
    app = build_app(open_store("file:///nonexistent"))
    seen = []
    for route in app.state.routes:
        assert isinstance(route, APIRoute)
        seen += [(method, re.sub(r"\{[^}]*\}", "x", route.path)) for method in sorted(route.methods)]
    assert len(seen) > 60
    return iter(seen)


ROUTES = list(routes())


async def test_no_route_looks_at_a_body_or_answers_before_it_knows_who_asks(platform: Platform):
    platform.tokens["unknown"] = "tq_0_0"
    for method, path in ROUTES:
        for who in ("", "unknown"):
            answer = await platform.send(who, method, path.removeprefix("/"), content=b"{ no JSON")
            assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHENTICATED"), path


async def test_a_caller_s_token_and_another_team_s_reach_no_route(platform: Platform):
    for method, path in ROUTES:
        for who, workspace in (("eve", "payments"), ("eve", None), ("bob", "payments"), ("old", "payments")):
            answer = await platform.send(
                who, method, path.removeprefix("/"), workspace=workspace, content=b"{ no JSON"
            )
            assert answer.status_code == 403, (who, method, path, answer.text)


def test_routes_that_change_something_take_an_operator():
    readers = ("/search", "/get", "/list", "/get-latest-versions")
    app = build_app(open_store("file:///nonexistent"))
    for route in app.state.routes:
        assert isinstance(route, APIRoute)
        if route.methods & {"POST", "PUT", "PATCH", "DELETE"} and not route.path.endswith(readers):
            rule = rule_of(route.dependant)
            assert rule is not None
            refuses = route.path == "/2.0/mlflow-artifacts/{rest:path}"
            assert str(rule.rule) in (("viewer",) if refuses else ("operator", "admin")), route.path


async def test_a_token_s_only_workspace_needs_no_header(platform: Platform):
    await platform.post("ada", "experiments/create", name="ours")
    assert platform.registry("payments").find_experiment("ours") is not None
    assert platform.registry("default").find_experiment("ours") is None
    assert platform.registry("fraud").find_experiment("ours") is None


async def test_the_workspace_is_named_by_either_header(platform: Platform):
    await platform.post("root", "experiments/create", workspace="fraud", name="mlflow-way")
    headers = {"Authorization": f"Bearer {platform.tokens['root']}", "X-Toque-Workspace": "fraud"}
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=mlflow-way"
    assert (await platform.http.get(path, headers=headers)).status_code == 200
    assert (await platform.send("root", "GET", path.removeprefix("/api/"))).status_code == 404


async def test_a_grant_counts_in_its_workspace_only(platform: Platform):
    async def status(workspace: str | None, name: str) -> int:
        answer = await platform.send(
            "both", "POST", "experiments/create", workspace=workspace, json={"name": name}
        )
        return answer.status_code

    assert await status("payments", "a") == 200
    assert await status("fraud", "b") == 403  # a viewer there
    assert await status(None, "c") == 403  # in neither of them
    assert await status("*", "d") == 403
    assert await status("../payments", "e") == 403
    answer = await platform.send("root", "POST", "experiments/create", workspace="none", json={"name": "x"})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


async def test_an_open_run_is_written_in_its_own_workspace_only(platform: Platform):
    """The log of a run stays open between calls; a caller with two workspaces must not reach it from the other."""
    run = (await platform.post("root", "runs/create", workspace="payments"))["run"]["info"]["run_id"]
    await platform.post("root", "runs/log-parameter", workspace="payments", run_id=run, key="a", value="1")
    body = {"run_id": run, "key": "b", "value": "2"}
    answer = await platform.send("root", "POST", "runs/log-parameter", workspace="fraud", json=body)
    assert answer.status_code == 404
    assert platform.registry("payments").get_record(run).params == {"a": "1"}


async def test_the_default_workspace_does_not_reach_those_that_lie_in_its_store(platform: Platform):
    run = await platform.model("ada", "late")
    there = {"inside": f"workspaces/payments/runs/{run}", "above": f"../workspaces/payments/runs/{run}"}
    for name in there.values():
        for path in (
            f"runs/get?run_id={name}",
            f"metrics/get-history?metric_key=m&run_id={name}",
            f"artifacts/list?run_id={name}",
            f"2.0/mlflow-artifacts/artifacts/runs/{name}/model/weights",
            f"2.0/mlflow-artifacts/artifacts/{name}/model/weights",
            f"registered-models/get?name={name.replace('runs', 'models')}",
        ):
            answer = await platform.send("old", "GET", path)
            assert answer.status_code in (400, 404, 501), (path, answer.text)
        body = {"run_id": name, "key": "k", "value": "v"}
        answer = await platform.send("old", "POST", "runs/set-tag", json=body)
        assert answer.status_code in (400, 404), answer.text
    assert (await platform.send("old", "GET", "registered-models/search")).json()["registered_models"] == []


async def test_a_token_for_one_model_reaches_that_model_and_nothing_else(platform: Platform):
    run = await platform.model("ada", "late")
    await platform.model("ada", "other")

    async def narrow(method: str, path: str, **kwargs: Any) -> httpx.Response:
        return await platform.send("narrow", method, path, **kwargs)

    files = "2.0/mlflow-artifacts/artifacts"
    alias = {"alias": "champion", "version": "1"}
    for name, status in (("late", 200), ("other", 403), ("absent", 403)):
        query = {"name": name, "version": "1"}
        answers = [
            await narrow("GET", "registered-models/get", params=query),
            await narrow("GET", "model-versions/get", params=query),
            await narrow("GET", "model-versions/get-download-uri", params=query),
            await narrow("POST", "registered-models/alias", json={"name": name, **alias}),
            await narrow("GET", "registered-models/alias", params={"name": name, "alias": "champion"}),
            await narrow("POST", "registered-models/get-latest-versions", json={"name": name}),
            await narrow("POST", "model-versions/set-tag", json={**query, "key": "k", "value": "v"}),
            await narrow("GET", f"{files}?path=models/{name}/1"),
            await narrow("GET", f"{files}/models/{name}/1/weights"),
        ]
        assert {answer.status_code for answer in answers} == {status}
    for answer in (
        await narrow("GET", "runs/get", params={"run_id": run}),
        await narrow("GET", f"{files}/runs/{run}/model/weights"),
        await narrow("GET", f"{files}/models/late/../other/1/weights"),
        await narrow("POST", "experiments/search", json={}),
        await narrow("POST", "model-versions/create", json={"name": "late", "source": f"runs:/{run}/model"}),
        await narrow("POST", "registered-models/create", json={"name": "third"}),
    ):
        assert answer.status_code in (400, 403), answer.text
    found = (await narrow("GET", "registered-models/search")).json()["registered_models"]
    assert [each["name"] for each in found] == ["late"]
    versions = (await narrow("GET", "model-versions/search")).json()["model_versions"]
    assert {each["name"] for each in versions} == {"late"}


async def test_workspaces_are_listed_as_far_as_one_may_read_them(platform: Platform):
    async def names(who: str) -> list[str]:
        answer = await platform.send(who, "GET", "3.0/mlflow/workspaces")
        return [each["name"] for each in answer.json()["workspaces"]]

    assert await names("root") == ["default", "payments", "fraud"]
    assert await names("both") == ["payments", "fraud"]
    assert await names("narrow") == ["payments"]
    assert (await platform.send("eve", "GET", "3.0/mlflow/workspaces")).status_code == 403
    assert (await platform.send("vera", "GET", "3.0/mlflow/workspaces/payments")).status_code == 200
    for unseen in ("fraud", "none"):
        assert (await platform.send("vera", "GET", f"3.0/mlflow/workspaces/{unseen}")).status_code == 404


async def test_only_an_admin_of_all_workspaces_creates_one_and_it_is_there_at_once(platform: Platform):
    made = await platform.send("root", "POST", "3.0/mlflow/workspaces", json={"name": "new"})
    assert (made.status_code, made.json()["workspace"]) == (201, {"name": "new", "description": ""})
    await platform.post("root", "experiments/create", workspace="new", name="first")
    again = await platform.send("root", "POST", "3.0/mlflow/workspaces", json={"name": "new"})
    assert again.json()["error_code"] == "RESOURCE_ALREADY_EXISTS"
    elsewhere = {"name": "x", "default_artifact_root": "s3://elsewhere"}
    refused = await platform.send("root", "POST", "3.0/mlflow/workspaces", json=elsewhere)
    assert refused.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    changed = await platform.send("root", "PATCH", "3.0/mlflow/workspaces/new", json={"description": "why"})
    assert changed.json()["workspace"]["description"] == "why"
    assert (await platform.send("root", "DELETE", "3.0/mlflow/workspaces/new")).status_code == 501
    for who in ("lead", "ada", "vera"):
        answer = await platform.send(who, "POST", "3.0/mlflow/workspaces", json={"name": "mine"})
        assert answer.status_code == 403
        answer = await platform.send(who, "PATCH", "3.0/mlflow/workspaces/new", json={"description": "x"})
        assert answer.status_code == 403


async def test_a_replica_serves_all_workspaces_whichever_one_its_process_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(f"file://{tmp_path}/store")
    access = Access(store, actor="root")
    access.create_workspace("payments")
    token = access.create_token("ada", "viewer", workspace="*")
    monkeypatch.setenv("TOQUE_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("TOQUE_WORKSPACE", "payments")
    transport = httpx.ASGITransport(app=build())
    async with httpx.AsyncClient(transport=transport, base_url="http://toque") as http:
        headers = {"Authorization": f"Bearer {token}"}
        listed = (await http.get("/3.0/mlflow/workspaces", headers=headers)).json()["workspaces"]
    assert [each["name"] for each in listed] == ["default", "payments"]


SCRIPT = Path(__file__).with_name("two_teams.py")


def test_two_teams_with_the_real_client_neither_see_nor_move_anything_of_the_other(
    server: TrackingServer, address: str
):
    """Both choose the same names; each tries every call on what the other made."""
    access = Access(open_store(f"file://{server.folder}/store"), actor="root")
    tokens = {"root": access.create_token("root", "admin", workspace="*")}
    for team in ("payments", "fraud"):
        access.create_workspace(team)
        tokens[team] = access.create_token(team, "operator", workspace=team)
    found = run_client(SCRIPT, address, tokens["root"], server.folder, json.dumps(tokens))
    for team in ("payments", "fraud"):
        assert found[team]["let_through"] == {"outside": [], "inside": []}
        assert (found[team]["experiments"], found[team]["models"]) == (["Default", "same"], ["same"])
        assert (found[team]["workspaces"], found[team]["note"]) == ([team], team)
        registry = Registry(workspace_store(server.registry.store, team), actor="test")
        (run,) = registry.search_runs("same")
        assert (run.metrics, run.actor, run.status) == ({"loss": 0.5}, team, "FINISHED")
        assert dict(registry.get_model("same").aliases) == {"champion": 1}
    assert server.registry.list_models() == []
