"""Routes for operators: health, metrics, schedules, tokens, and the server calls of the inference protocol."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import PlainTextResponse, Response

from ray_apps.admission import OPEN, GuardedRoute, allowed
from ray_apps.gateway.problems import Problem
from ray_apps.gateway.routes.feature_metrics import feature_metrics
from ray_apps.gateway.routes.schedules import statuses
from ray_apps.gateway.services import services_of
from ray_apps.gateway.wire import Json, Name, Time
from registry import Access, NotFound, Principal, RegistryError, Role, utc_now

router = APIRouter(route_class=GuardedRoute)

NAME, VERSION = "toque", "0.1.0"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Viewer = Annotated[Principal, allowed(Role.viewer)]
Admin = Annotated[Principal, allowed(Role.admin)]


class TokenRequest(BaseModel):
    """A token to create: whose, with which role, until when."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    role: Literal["viewer", "predictor", "operator", "approver", "admin"]
    expires_at: Time | None = None


class NewToken(BaseModel):
    """A new token, whose secret `token` is shown only once."""

    name: str
    role: str
    token: str


class TokenEntry(BaseModel):
    """A token in the access list, without its secret."""

    id: str
    name: str
    role: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@router.get("/healthz", tags=["health"], dependencies=[OPEN])
async def get_health() -> Json:
    """Tell that this process answers; together with the protocol's health calls the only route without a token."""
    return Json({"status": "ok"})


@router.get("/v2/health/live", tags=["protocol"], dependencies=[OPEN])
async def get_live() -> Json:
    """Tell whether the server is alive."""
    return Json({"live": True})


@router.get(
    "/v2/health/ready",
    tags=["protocol"],
    responses={503: {"description": "The store is away"}},
    dependencies=[OPEN],
)
async def get_ready(request: Request) -> Json:
    """Tell whether the server can do its work, for which the store must answer."""
    services = services_of(request)
    try:
        await services.run(services.context.store.find, "health")
    except RegistryError:
        return Json({"ready": False}, 503)
    return Json({"ready": True})


@router.get("/v2", tags=["protocol"])
async def get_server(_: Viewer) -> Json:
    """The server's name, version and protocol extensions."""
    return Json({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
async def get_metrics(request: Request, _: Viewer) -> Response:
    """Render metrics of this process, and of feature views as last measured, in Prometheus's text format."""
    services = services_of(request)
    features = await services.run(feature_metrics, services.context.store, now=services.context.clock())
    return Response(request.app.state.metrics.text() + features, media_type=METRICS_TYPE)


@router.get("/schedules", tags=["functions"])
async def get_schedules(request: Request, principal: Viewer) -> Json:
    """List schedules: the function, the last tick that was handled, and the next one."""
    services = services_of(request)
    await services.ready()
    return Json(await services.run(statuses, services.context_of(principal)))


@router.get("/tokens", tags=["access"], response_model=list[TokenEntry])
async def list_tokens(request: Request, principal: Admin) -> Json:
    """List all tokens, also expired and revoked ones, without their secrets."""
    access = _access(request, principal)
    kept = await services_of(request).run(access.list_tokens)
    listed = [
        each.model_dump(mode="json", exclude={"digest"}) | {"role": each.grants[0].role.name} for each in kept
    ]
    return Json(listed)


@router.post("/tokens", tags=["access"], response_model=NewToken, status_code=201)
async def create_token(request: Request, body: TokenRequest, principal: Admin) -> Json:
    """Create a bearer token with a role. Raises: Problem 409 if its expiry has passed, or a live token has its name."""
    if body.expires_at is not None and body.expires_at <= utc_now():
        raise Problem(409, f"expires_at={body.expires_at.isoformat()} has passed; give a later time")
    access = _access(request, principal)
    made = await services_of(request).run(
        access.create_token, body.name, body.role, expires_at=body.expires_at
    )
    await _read_again(request)
    return Json({"name": body.name, "role": body.role, "token": made}, 201)


@router.delete("/tokens/{name}", tags=["access"], status_code=204)
async def revoke_token(request: Request, name: Name, principal: Admin) -> Response:
    """Revoke the live token of that name; every process refuses it within two seconds."""
    await services_of(request).run(_access(request, principal).revoke, name)
    await _read_again(request)
    return Response(status_code=204)


@router.get("/v2/models/{model}", tags=["protocol"], include_in_schema=False)
@router.get("/v2/models/{model}/{rest:path}", tags=["protocol"], include_in_schema=False)
@router.post("/v2/models/{model}/{rest:path}", tags=["protocol"], include_in_schema=False)
async def no_such_model(model: str, _: Viewer, rest: str = "") -> Json:  # noqa: ARG001  # part of the path
    """Answer 404 for a model that is not served: a served one has a route of its own, which goes first."""
    raise NotFound(
        f"model {model!r} is not served here; `GET /models` lists the registry's, `toque up` serves them"
    )


async def _read_again(request: Request) -> None:
    """Reread the access list, so that this gateway applies the change at once."""
    await services_of(request).run(services_of(request).access_list.list_tokens)
    request.app.state.admission.tokens.forget()


def _access(request: Request, principal: Principal) -> Access:
    services = services_of(request)
    return Access(services.context.store, actor=principal.name)
