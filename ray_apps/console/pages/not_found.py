"""Page for addresses that no other page has; it stands last."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from starlette.exceptions import HTTPException
from starlette.responses import Response

from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import ANYBODY, pages_router

router = pages_router()


@router.get("/{path:path}")
async def not_found(_: Annotated[Page, ANYBODY], path: str) -> Response:
    """Tell that there is no such page, to somebody who has signed in."""
    raise HTTPException(HTTPStatus.NOT_FOUND, f"The console has no page {path!r}.")
