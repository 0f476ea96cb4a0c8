"""Pages of the console, one module a topic.

A page is a handler in a module with a `router` (from `pages_router`), which has one place in `PAGES`, and one template. What the
navigation leads to has an `Entry`, with one place in `NAVIGATION`. Handlers take a `Page`, ask `page.api`, and return
`page.render(…)`.
"""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter

from toque.ray_apps.console.pages import (
    access,
    costs,
    events,
    features,
    functions,
    home,
    models,
    monitors,
    reports,
    runs,
    traffic,
)
from toque.ray_apps.console.route import Entry


class PageModule(Protocol):
    """Module with the pages of one topic."""

    @property
    def router(self) -> APIRouter:
        """Routes of the module's pages."""
        ...


PAGES: tuple[PageModule, ...] = (
    home,
    models,
    traffic,
    monitors,
    features,
    runs,
    functions,
    costs,
    reports,
    access,
    events,
)
NAVIGATION: tuple[Entry, ...] = (
    home.ENTRY,
    models.ENTRY,
    traffic.ENTRY,
    traffic.ROLLOUTS_ENTRY,
    monitors.ENTRY,
    monitors.PREDICTIONS_ENTRY,
    features.ENTRY,
    runs.ENTRY,
    functions.ENTRY,
    functions.INVOCATIONS_ENTRY,
    costs.QUEUE_ENTRY,
    costs.ENTRY,
    reports.ENTRY,
    access.ENTRY,
    access.TOKENS_ENTRY,
)
