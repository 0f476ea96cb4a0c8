"""Installs the console in the gateway's application."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from anyio import to_thread
from fastapi import FastAPI
from starlette.types import ASGIApp

from toque.ray_apps.admission import RequestLimits
from toque.ray_apps.console import sign_in
from toque.ray_apps.console.assets import Assets
from toque.ray_apps.console.live import LiveChanges, Renderings
from toque.ray_apps.console.pages import NAVIGATION, PAGES
from toque.ray_apps.console.rendering import make_templates
from toque.ray_apps.console.route import PREFIX
from toque.ray_apps.console.sign_in import Session, Sessions
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.oidc.code_flow import CodeFlow
from toque.registry import Clock, ObjectStore, Unavailable, utc_now

STATIC = Path(__file__).with_name("static")


class Console:
    """Parts that all pages share: sessions, templates, files to load, and entries of the navigation."""

    def __init__(
        self,
        app: ASGIApp,
        store: ObjectStore,
        *,
        redis_url: str | None = None,
        oidc: OidcSettings | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.clock = clock
        self.live = LiveChanges(store, redis_url)
        self.renderings = Renderings(app)
        self.oidc = None if oidc is None or oidc.client is None else CodeFlow(oidc, oidc.client)
        self.sessions = Sessions(store, clock=clock)
        self.strangers = RequestLimits()
        self.templates = make_templates()
        self.assets = Assets(STATIC, f"{PREFIX}/static")
        self.entries = NAVIGATION

    async def find_session(self, session_id: str) -> Session | None:
        """Find a session; None if it ended, expired, or the store does not answer."""
        known = self.sessions.recall(session_id)
        if known is not None:
            return known
        try:
            return await to_thread.run_sync(self.sessions.find, session_id)
        except Unavailable:
            return None

    @staticmethod
    def link(root: str, *parts: Any, **query: Any) -> str:
        """Path of a page below `root`, each part quoted."""
        path = "/".join((root, *(quote(str(part), safe="") for part in parts))) if parts else f"{root}/"
        given = {name: value for name, value in query.items() if value is not None}
        return f"{path}?{urlencode(given)}" if given else path


def install(
    app: FastAPI,
    store: ObjectStore,
    *,
    redis_url: str | None = None,
    oidc: OidcSettings | None = None,
    clock: Clock = utc_now,
    console_url: str | None = None,
) -> None:
    """Add the pages to an application whose state has an `admission`.

    store: the platform's, for sessions alone. redis_url: announces what changes, so that open pages follow it. oidc:
    issuer at which people may sign in; console_url: address at which people reach the pages.
    """
    app.state.console_url = console_url
    app.state.console = Console(app, store, redis_url=redis_url, oidc=oidc, clock=clock)
    for router in (sign_in.router, *(page.router for page in PAGES)):
        # FastAPI analyses the routes of an included router again, for every application
        app.routes.extend(router.routes)
