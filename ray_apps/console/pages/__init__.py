"""Pages of the console, one module a topic.

A page is one module with a `router` (from `pages_router`) and an `ENTRY` for the navigation (None: reached from other pages
only), one template, and one place in `PAGES`. Its handlers take a `Page`, ask `page.api`, and return `page.render(…)`.
"""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter

from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.pages import (
    audit,
    costs,
    events,
    features,
    functions,
    home,
    invocations,
    monitors,
    not_found,
    predictions,
    queue,
    reports,
    runs,
    tokens,
)
from toque.ray_apps.console.pages.registry import models, rollouts, traffic, versions


class PageModule(Protocol):
    """Module with the pages of one topic."""

    @property
    def router(self) -> APIRouter:
        """Routes of the module's pages."""
        ...

    @property
    def ENTRY(self) -> Entry | None:  # noqa: N802  # a constant of the module
        """Entry of the navigation; None for pages that are reached from others only."""
        ...


PAGES: tuple[PageModule, ...] = (
    home,
    models,
    versions,
    traffic,
    rollouts,
    monitors,
    predictions,
    features,
    runs,
    functions,
    invocations,
    queue,
    costs,
    reports,
    audit,
    tokens,
    events,
    not_found,
)
