"""Page of tokens: whose they are, what they may do, when they were used, and the button that revokes one."""

from __future__ import annotations

from typing import Annotated

from starlette.responses import Response

from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import CHANGE, Form, page_for, pages_router
from toque.registry import Role

router = pages_router()
ENTRY = Entry("Tokens", "tokens", role="admin")
Admin = Annotated[Page, page_for(Role.admin)]


@router.get("/tokens")
async def list_tokens(page: Admin) -> Response:
    """List the tokens within the viewer's reach: live ones first, then those that ended."""
    tokens = await page.api.get("/tokens")
    now = page.now.isoformat()
    live = [each for each in tokens if _is_live(each, now)]
    ended = [each for each in tokens if not _is_live(each, now)]
    newest = sorted(live, key=lambda each: str(each["created_at"]), reverse=True)
    return await page.render("tokens.html", valid=newest, ended=ended)


@router.post("/tokens/{name}/revoke")
async def revoke(page: Admin, name: str, _: Annotated[Form, CHANGE]) -> Response:
    """Revoke the live token of that name."""
    done = f"The token {name} is revoked; within two seconds it is refused everywhere."
    return await page.change(page.link("tokens"), done, "DELETE", f"/tokens/{page.quoted(name)}")


def _is_live(token: dict[str, str | None], now: str) -> bool:
    """Whether a token is neither revoked nor expired; times are UTC in the same form, so they compare as texts."""
    return not token["revoked_at"] and (not token["expires_at"] or str(token["expires_at"]) > now)
