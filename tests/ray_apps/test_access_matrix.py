"""Every route of gateway and MLflow's protocol, asked by every role from every workspace.

The routes are read from the applications, so that a new one without a rule, or without an entry in `access_matrix`,
fails here. What a route does with a request that it lets in is not looked at.
"""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.ray_apps.access_matrix import BODIES, GATEWAY, MLFLOW
from toque.functions.runtime.context import Context
from toque.ray_apps import mlflow
from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.admission.guarded_route import rule_of
from toque.ray_apps.console.page import Api, ApiError
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry import Access, Grant, Registry, Role, open_store

WORKSPACE = "payments"
MODEL = "churn"
ROLES = tuple(role.name for role in Role)
ELSEWHERE = ("default", "search")
INCLUDED = {
    "viewer": {"viewer", "operator", "approver", "admin"},
    "caller": {"caller", "operator", "approver", "admin"},
    "labeller": {"labeller", "operator", "approver", "admin"},
    "operator": {"operator", "approver", "admin"},
    "approver": {"approver", "admin"},
    "admin": {"admin"},
}


@dataclass
class Asked:
    """An application, and a token for each grant."""

    app: FastAPI
    http: httpx.AsyncClient
    tokens: dict[str, str]
    headers: tuple[str, ...]

    async def status(self, method: str, path: str, grant: str | None) -> int:
        """Ask as the holder of a grant; 403 only if admission or the route's own check of roles refused."""
        headers = dict.fromkeys(self.headers, WORKSPACE)
        if grant is not None:
            headers["Authorization"] = f"Bearer {self.tokens[grant]}"
        body = None if method in {"GET", "DELETE"} else BODIES.get(f"{method} {path}", b"{}")
        answer = await self.http.request(
            method, path, headers=headers | {"Content-Type": "application/json"}, content=body
        )
        refused = answer.status_code == 403 and "this needs" in answer.text  # else a rule of the registry's
        return 403 if refused else 401 if answer.status_code == 401 else 200


def grants() -> Iterator[str]:
    """Every role in the asked workspace, in another, in all, and for one model."""
    for role in ROLES:
        yield from (f"{role}:{where}" for where in (WORKSPACE, *ELSEWHERE, "*"))
        if role != "labeller":
            yield f"{role}:{WORKSPACE}:{MODEL}"


def expected(wanted: str, grant: Grant, path: str) -> bool:
    """Whether a route for `wanted` lets the holder of a grant in."""
    if wanted == "platform":
        return grant.role is Role.admin and grant.workspace == "*"
    where = grant.workspace in {WORKSPACE, "*"}
    of_model = rf"/(?:models|ui/traffic|ui/rollouts|ui/monitors)/{grant.model}(/|$)"
    what = grant.model is None or re.search(of_model, path) is not None
    return where and what and any(grant.role.name in INCLUDED[role] for role in wanted.split(" or "))


@pytest.fixture
async def asked(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Asked]:
    async def not_asked(*_: object, **__: object) -> Any:
        raise ApiError(404, "a page that lets somebody in need not be made here")

    monkeypatch.setattr(Api, "_send", not_asked)
    store = open_store(f"file://{tmp_path}/store")
    access = Access(store, actor="root")
    for name in (WORKSPACE, "search"):
        access.create_workspace(name)
    tokens = {
        grant: access.create_token(re.sub("[:*]", "-", grant), grants=(Grant.parse(grant),))
        for grant in grants()
    }
    Registry(store.within(f"workspaces/{WORKSPACE}"), actor="ada").create_model(MODEL)
    app = mlflow.build_app(store) if request.param == "mlflow" else gateway(store.url, access)
    headers = ("X-Toque-Workspace",)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://toque") as http:
        yield Asked(app, http, tokens, headers)


def concrete_path(path: str) -> str:
    """A path with the model and workspace that are there, and anything for its other parameters."""
    known = {"/workspaces/{name}": f"/workspaces/{WORKSPACE}", "{model}": MODEL, "{version}": "1"}
    for pattern, value in known.items():
        path = path.replace(pattern, value)
    return re.sub(r"\{\w+(:path)?\}", "x", path)


def gateway(store_url: str, access: Access) -> FastAPI:
    def no_labels(*_: object) -> Any:
        raise AssertionError("no label was sent")

    return build_app(
        Services(Context(open_store(store_url), store_url), labels=no_labels, access=access, wait_s=1)
    )


def routes(app: FastAPI) -> Iterator[tuple[str, str, GuardedRoute]]:
    """Method, path and route of everything that an application serves."""
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        if hasattr(route, "original_router"):  # how FastAPI keeps an included router
            pending += route.original_router.routes
            continue
        assert isinstance(route, GuardedRoute), f"{route} is not guarded"
        for method in route.methods - {"HEAD"}:
            yield method, route.path, route


TABLES = {"gateway": GATEWAY, "mlflow": MLFLOW}


@pytest.mark.parametrize(("asked", "door"), [(door, door) for door in TABLES], indirect=["asked"])
def test_each_route_stands_in_the_matrix(asked: Asked, door: str) -> None:
    listed = {route: wanted for wanted, group in TABLES[door].items() for route in group}
    assert {f"{method} {path}" for method, path, _ in routes(asked.app)} == set(listed)
    for method, path, route in routes(asked.app):
        required = rule_of(route.dependant)
        assert required is not None
        declared = str(required.rule) or "open"
        wanted = listed[f"{method} {path}"]
        assert declared == ("admin" if wanted == "platform" else wanted), (method, path)


@pytest.mark.parametrize(("asked", "door"), [(door, door) for door in TABLES], indirect=["asked"])
async def test_each_role_from_each_workspace_gets_exactly_what_the_matrix_says(
    asked: Asked, door: str
) -> None:
    listed = {route: wanted for wanted, group in TABLES[door].items() for route in group}
    wrong = []
    for method, path, route in routes(asked.app):
        wanted = listed[f"{method} {path}"]
        required = rule_of(route.dependant)
        assert required is not None
        concrete = concrete_path(path)
        without = await asked.status(method, concrete, None)
        if without != (200 if wanted == "open" else 401):
            wrong.append((method, path, "no token", without))
        if wanted == "open":
            continue
        for grant in map(Grant.parse, grants()):
            if grant.model is not None and required.model is not None:
                continue  # the route's body names the model
            status = await asked.status(method, concrete, str(grant))
            if (status == 200) != expected(wanted, grant, concrete):
                wrong.append((method, path, str(grant), status))
    assert not wrong
