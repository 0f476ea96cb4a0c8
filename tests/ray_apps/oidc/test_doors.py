"""Each door lets the tokens of an issuer in, by the grants of their claims."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from tests.ray_apps.oidc.conftest import Issuer
from toque.functions.runtime.context import Context
from toque.ray_apps.admission import open_admission
from toque.ray_apps.gateway.app import build_app as build_gateway
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.mlflow import build_app as build_mlflow
from toque.ray_apps.predictor.deploy.options import PoolOptions, PredictorOptions
from toque.ray_apps.predictor.grpc.deployment import ProxyOptions
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.registry import Access, ObjectStore, Registry, open_store, workspace_store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = open_store(f"file://{tmp_path}/store")
    Access(store, actor="root").create_workspace("payments")
    Registry(workspace_store(store, "payments"), actor="root").create_model("fraud")
    return store


def no_labels() -> None:
    raise AssertionError


@pytest.fixture(params=["gateway", "mlflow"])
async def door(
    request: pytest.FixtureRequest, store: ObjectStore, tmp_path: Path, issuer: Issuer
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    app: ASGIApp
    if request.param == "mlflow":
        app, path = (
            build_mlflow(store, oidc=issuer.settings()),
            "/2.0/mlflow/registered-models/get?name=fraud",
        )
    else:
        context = Context(store=store, store_url=f"file://{tmp_path}/store")
        app = build_gateway(Services(context=context, labels=no_labels, oidc=issuer.settings()))
        path = "/models"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://toque") as client:
        yield client, path


async def status(door: tuple[httpx.AsyncClient, str], token: str, workspace: str = "payments") -> int:
    client, path = door
    headers = {"Authorization": f"Bearer {token}", "X-Toque-Workspace": workspace}
    return (await client.get(path, headers=headers)).status_code


async def test_a_door_admits_by_the_claims_of_a_signed_token(
    door: tuple[httpx.AsyncClient, str], issuer: Issuer
):
    assert await status(door, issuer.token()) == 200
    assert await status(door, issuer.token(), "default") == 403
    assert await status(door, issuer.token(groups=["cooks"])) == 403
    assert await status(door, issuer.token(aud="another")) == 401
    assert await status(door, issuer.token()[:-4] + "AAAA") == 401


async def test_a_predictor_admits_by_the_claims_of_a_signed_token(store: ObjectStore, issuer: Issuer):
    admission = open_admission(store, "predictor", oidc=issuer.settings())
    auth = TokenAuthenticator(admission, workspace="payments")
    scorer = issuer.token(groups=[], realm_access={"roles": ["scorer"]})
    await auth.admit(f"Bearer {scorer}".encode(), model="fraud")


def test_options_of_predictors_and_proxy_carry_the_issuer(tmp_path: Path, issuer: Issuer):
    settings = issuer.settings()
    environment = {"TOQUE_STORE": f"file://{tmp_path}", "TOQUE_OIDC": settings.model_dump_json()}
    for options in (PredictorOptions, PoolOptions, ProxyOptions):
        extra = {"url": "http://x"} if options is ProxyOptions else {}
        found = options.from_environment(environment, **extra)
        sent = options.model_validate(found.model_dump(mode="json"))  # as Serve sends them to a replica
        assert sent.oidc == settings
