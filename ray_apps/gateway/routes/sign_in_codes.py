"""Route that makes a single-use code, by which the caller's browser signs in to the console."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel

from toque.ray_apps.admission import ANY_MODEL, GuardedRoute, allowed
from toque.ray_apps.admission.guarded_route import header
from toque.ray_apps.gateway.services import services_of
from toque.ray_apps.gateway.wire import Json
from toque.ray_apps.token_cache import bearer_token
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["access"])

Anybody = Annotated[Principal, allowed(*Role, model=ANY_MODEL, anywhere=True)]


class SignInCode(BaseModel):
    """Code that signs the caller's browser in once. path: the page that takes it."""

    code: str
    path: str
    expires_at: datetime


@router.post("/sign-in-codes", response_model=SignInCode, status_code=201)
async def create_sign_in_code(request: Request, _: Anybody) -> Json:
    """Make a code that signs a browser in to the console as the caller, once and within two minutes."""
    token = bearer_token(header(request, "authorization")) or ""
    sessions = request.app.state.console.sessions
    code, expires_at = await services_of(request).run(sessions.make_code, token)
    made = SignInCode(code=code, path=f"/ui/enter?code={code}", expires_at=expires_at)
    return Json(made.model_dump(mode="json"), 201)
