"""Pages of the console, one module a topic.

A page is a handler in a module with a `router` (from `pages_router`), which has one place in `PAGES`, and one template. What the
navigation leads to has an `Entry`, with one place in `NAVIGATION`. Handlers take a `Page`, ask `page.api`, and return
`page.render(…)`.
"""

from __future__ import annotations

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

PAGES: tuple[APIRouter, ...] = (
    home.router,
    models.router,
    traffic.router,
    monitors.router,
    features.router,
    runs.router,
    functions.router,
    costs.router,
    reports.router,
    access.router,
    events.router,
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
