"""Pages of access: the audit, with who was refused or changed what, and the tokens, with the button that revokes one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import Response

from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import Admin, Entry, Sent, pages_router

router = pages_router()
ENTRY = Entry("Audit", "audit", role="admin")
TOKENS_ENTRY = Entry("Tokens", "tokens", role="admin")
ROWS = 100
_KINDS = {
    "": "everything",
    "refusal": "refusals",
    "access": "changes of access",
    "model": "changes of models",
}


@router.get("/tokens")
async def list_tokens(page: Admin) -> Response:
    """List the tokens within the viewer's reach: live ones first, then those that ended."""
    tokens = await page.api.get("/tokens")
    now = page.now.isoformat()
    live = [token for token in tokens if _is_live(token, now)]
    ended = [token for token in tokens if not _is_live(token, now)]
    newest = sorted(live, key=lambda each: str(each["created_at"]), reverse=True)
    return await page.render("tokens.html", valid=newest, ended=ended)


@router.post("/tokens/{name}/revoke")
async def revoke(page: Admin, name: str, _: Sent) -> Response:
    """Revoke the live token of that name."""
    done = f"The token {name} is revoked; within two seconds it is refused everywhere."
    return await page.change(page.link("tokens"), done, "DELETE", f"/tokens/{page.quoted(name)}")


@router.get("/audit")
async def show_audit(
    page: Admin,
    kind: Literal["", "refusal", "access", "model"] = "",
    actor: Annotated[str, Query(max_length=128)] = "",
    since: Annotated[str, Query(max_length=40)] = "",
    until: Annotated[str, Query(max_length=40)] = "",
    seen: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Show the entries of the workspace, newest first; a date alone is the beginning of that day in UTC.

    seen: entries of the very moment `until` that the pages before have shown.
    """
    entries = await page.api.get(
        "/audit",
        kind=kind or None,
        actor=actor or None,
        since=_moment(since),
        until=_moment(until),
        seen=seen,
        limit=ROWS,
    )
    last = entries[-1]["at"] if len(entries) == ROWS else None
    shown = sum(entry["at"] == last for entry in entries) + ((seen or 0) if last == until else 0)
    return await page.render(
        "audit.html",
        entries_found=entries,
        linked=lambda entry: _link(page, entry),
        following=None if last is None else page.changed(until=last, seen=shown),
        kinds=_KINDS,
        chosen={"kind": kind, "actor": actor, "since": since, "until": until},
    )


def _is_live(token: dict[str, str | None], now: str) -> bool:
    """Whether a token is neither revoked nor expired; times are UTC in the same form, so they compare as texts."""
    return not token["revoked_at"] and (not token["expires_at"] or str(token["expires_at"]) > now)


def _link(page: Page, entry: dict[str, Any]) -> str | None:
    """Make the address of what an entry changed: a version, a model or the tokens; None if that is no page of the workspace."""
    kind, _, what = entry["what"].partition(": ")
    if entry["kind"] == "access" and kind.startswith("token "):
        return page.link("tokens")
    if entry["kind"] != "model" or entry["workspace"] != page.workspace:
        return None
    model, _, version = what.partition("@")
    return page.link("models", model, *(("versions", version) if version.isdecimal() else ()))


def _moment(text: str) -> str | None:
    """Read a date or moment of the form; the API refuses what is neither."""
    if not text:
        return None
    return f"{text}T00:00:00Z" if "T" not in text else text
