"""Builds the gateway's FastAPI application from its routers; a request's roles are checked before its body is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from toque.ray_apps import console
from toque.ray_apps.admission import OPEN, BodyLimit, GuardedRoute, open_admission, write_refusals_at_end
from toque.ray_apps.admission.admission import Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import allowed, client_of, header, workspace_named
from toque.ray_apps.gateway import openapi, problems
from toque.ray_apps.gateway.metrics import RequestMetrics
from toque.ray_apps.gateway.openapi import list_http
from toque.ray_apps.gateway.problems import Problem, WorkspacePath
from toque.ray_apps.gateway.routes import (
    access,
    features,
    feedback,
    functions,
    models,
    operations,
    reports,
    resources,
    runs,
)
from toque.ray_apps.gateway.services import Services, context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.ray_apps.middleware import NO_TELEMETRY, AnswersHead, TracedRequests
from toque.registry import Principal, Role

COMPRESSED_FROM_BYTES = 4_096
COMPRESSION = 4  # of 9; the last steps cost twice the time for a twentieth of the size
_PLAYGROUND = Path(__file__).with_name("playground.html")
_POLICY = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_ROUTERS = (
    functions.router,
    models.router,
    resources.router,
    feedback.router,
    features.router,
    operations.router,
    access.router,
    reports.router,
    runs.router,
)


def build_app(services: Services, *, behind_serve: bool = False) -> FastAPI:
    """Build the gateway's application, which needs neither Ray nor Serve.

    services: the context, access list and label log that the routes use. behind_serve: whether Serve answers with ids of requests.
    """
    app = FastAPI(
        title="Toque",
        version=operations.VERSION,
        description="Functions, models, feedback and features of a Toque platform.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # `problems` does, to a path: FastAPI would repeat whatever Host the caller named
        lifespan=write_refusals_at_end,
        telemetry=NO_TELEMETRY,
    )
    app.state.services = services
    app.state.admission = open_admission(
        services.context.store, "gateway", access=services.access_list, oidc=services.oidc
    )
    app.router.route_class = GuardedRoute
    app.state.routes = [route for router in _ROUTERS for route in router.routes]
    # FastAPI analyses the routes of an included router again, for every application
    app.routes.extend(app.state.routes)
    openapi.install(app)
    problems.install(app, identify=identify_bearer)
    app.add_exception_handler(NotAdmitted, _on_refusal)
    app.add_api_route("/openapi.json", get_openapi, methods=["GET"], include_in_schema=False)
    app.add_api_route("/", get_root, methods=["GET"], include_in_schema=False, dependencies=[OPEN])
    app.add_api_route("/docs", get_playground, methods=["GET"], include_in_schema=False, dependencies=[OPEN])
    context = services.context
    console.install(
        app,
        context.store,
        redis_url=context.redis_url,
        oidc=services.oidc,
        clock=context.clock,
        console_url=context.console_url,
    )
    # Not `text/event-stream`, which the middleware leaves alone: what waits in a compressor is not seen.
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_FROM_BYTES, compresslevel=COMPRESSION)
    app.add_middleware(BodyLimit)
    app.add_middleware(TracedRequests, behind_serve=behind_serve)
    app.add_middleware(RequestMetrics)
    app.add_middleware(WorkspacePath)
    app.add_middleware(AnswersHead)
    return app


def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotAdmitted)  # noqa: S101  # registered for it only
    return problems.respond(problem_of_refusal(error), request)


async def get_openapi(request: Request, _: Annotated[Principal, allowed(Role.viewer)]) -> Json:
    """Serve the OpenAPI document of the routes and of every function."""
    await services_of(request).ready()
    functions = list_http(await context_of(request))
    return Json(await services_of(request).run(openapi.document, request.app, functions))


async def get_root(request: Request) -> Response:
    """Lead a person to the console, and tell a program what there is; links of MLflow's client come here too."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/ui/", 303, headers={"Vary": "Accept"})
    return JSONResponse(
        {"console": "/ui/", "openapi": "/openapi.json", "docs": "/docs"}, headers={"Vary": "Accept"}
    )


async def get_playground() -> HTMLResponse:
    """Serve a page that sends requests to models; the page holds no data of the platform and needs no token."""
    return HTMLResponse(_PLAYGROUND.read_text(), headers={"Content-Security-Policy": _POLICY})


async def identify_bearer(request: Request) -> Principal:
    """Identify the caller of a request that no route has admitted. Raises: Problem 401, 503."""
    admission: Admission = request.app.state.admission
    try:
        return await admission.identify(header(request, "authorization"))
    except NotAdmitted as refusal:
        admission.note(
            refusal,
            who=None,
            what=f"{request.method} {request.url.path}",
            workspace=workspace_named(request),
            client=client_of(request),
        )
        raise problem_of_refusal(refusal) from refusal


def problem_of_refusal(refusal: NotAdmitted) -> Problem:
    """Convert the refusal of a request to a problem."""
    return Problem(refusal.status, str(refusal), headers=refusal.headers)


__all__ = [
    "COMPRESSED_FROM_BYTES",
    "COMPRESSION",
    "allowed",
    "build_app",
    "get_openapi",
    "get_playground",
    "get_root",
    "identify_bearer",
    "problem_of_refusal",
]
