"""Page of the queue of experiments: what runs, what waits for what, and what each team may have and has spent."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any

from starlette.responses import Response

from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import page_for, pages_router
from toque.registry import Role

router = pages_router()
ENTRY = Entry("Queue", "queue")


@router.get("/queue")
async def show_queue(page: Annotated[Page, page_for(Role.viewer)]) -> Response:
    """Show the experiments that run and wait, the teams' quotas, and this month's budgets."""
    admissions, quotas, budgets = await asyncio.gather(
        page.api.call("admissions"), page.api.call("quotas"), page.api.call("budgets")
    )
    running = [each for each in admissions if each["waits_for"] is None]
    return await page.render(
        "queue.html",
        live=("invocations/*", "quotas"),
        running=running,
        waiting=[each for each in admissions if each["waits_for"] is not None],
        teams=_teams(quotas, running),
        budgets=[each | {"left": max(0.0, each["limit"] - each["spent"])} for each in budgets],
    )


def _teams(quotas: dict[str, Any], running: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each team has and may have, `everyone` last."""
    gpus, cpus, count = Counter[str](), Counter[str](), Counter[str]()
    for each in running:
        for team in (each["team"], "everyone"):
            gpus[team] += each["gpus"]
            cpus[team] += each["cpus"]
            count[team] += 1
    names = sorted({*quotas, *count}, key=lambda name: (name == "everyone", name))
    return [
        {"team": name, "used_gpus": gpus[name], "used_cpus": cpus[name], "running": count[name]}
        | {"members": [], "gpus": None, "cpus": None, "at_once": None, "share": 1.0}
        | quotas.get(name, {})
        for name in names
    ]
