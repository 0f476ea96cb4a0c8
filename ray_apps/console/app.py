"""Installs the console in the gateway's application."""

from __future__ import annotations

from fastapi import FastAPI

from toque.ray_apps.console import sign_in
from toque.ray_apps.console.page import Assets, Console
from toque.ray_apps.console.pages import NAVIGATION, PAGES
from toque.ray_apps.console.route import PREFIX
from toque.ray_apps.oidc import OidcSettings
from toque.registry import Clock, ObjectStore, utc_now


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
    assets = Assets(f"{PREFIX}/static")
    app.state.console = Console(
        app, store, assets=assets, entries=NAVIGATION, redis_url=redis_url, oidc=oidc, clock=clock
    )
    for router in (sign_in.router, *PAGES):
        # FastAPI analyses the routes of an included router again, for every application
        app.routes.extend(router.routes)
