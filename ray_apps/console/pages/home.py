"""Home page: what needs somebody, what is under way, and what runs."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from toque.ray_apps.admission import OPEN
from toque.ray_apps.console.page import Page, Told
from toque.ray_apps.console.route import Entry, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Home", "")
_MODELS: Final = 20
_ROWS: Final = 10  # of each thing that needs somebody
_FAILED_SINCE: Final = timedelta(days=3)
_LIVE: Final = ("models/*", "rollouts/*", "alarms/*", "alerts/*", "experiments/*", "dead_letters")


@router.get("", dependencies=[OPEN])
async def go_home() -> Response:
    """Send the browser to the home page."""
    return RedirectResponse("ui/")


@router.get("/")
async def show_home(page: Viewer) -> Response:
    """Show what needs somebody, the rollouts under way, and the models with what answers for them."""
    api, told, shown = page.api, page.told, _ROWS + 1  # one more says that there are more
    models, alarms, waiting, dead, failed, budgets, rollouts = await asyncio.gather(
        api.get("/models", limit=_MODELS),
        told(_alarms(page)),
        told(api.get("/approvals", limit=shown)),
        told(api.get("/invocations", state="dead", limit=shown)),
        told(api.get("/runs", where=failed_since(page.now - _FAILED_SINCE), limit=shown)),
        told(api.call("error_budgets")),
        told(api.call("list_rollouts")),
    )
    needs = {
        "alarms": alarms,
        "waiting": waiting,
        "dead": dead,
        "failed": failed,
        "budgets": _only(budgets, "needs_somebody"),
    }
    return await page.render(
        "home.html",
        live=_LIVE,
        needs=needs,
        rows=_ROWS,
        failed_where=failed_since(page.now - _FAILED_SINCE),
        days=_FAILED_SINCE.days,
        calm=not any(needs.values()),
        rollouts=_only(rollouts, "is_open"),
        models=models,
        more=len(models) == _MODELS,
    )


def failed_since(start: datetime) -> str:
    """Write the search for runs that began since a moment and failed, or were lost with their machine."""
    begun = int(start.timestamp() * 1000)
    return f"attributes.status IN ('FAILED', 'LOST') and attributes.start_time >= {begun}"


async def _alarms(page: Page) -> list[dict[str, Any]]:
    """List the standing alarms that no broken feed explains, with who looks after each."""
    found = [each for each in await page.api.call("open_alarms") if not each["explained_by"]]
    models = list(dict.fromkeys(each["model"] for each in found[:_ROWS]))
    told = await asyncio.gather(*(page.api.call("alert_status", model=model) for model in models))
    standing = {name: alerts["standing"] for name, alerts in zip(models, told, strict=True)}
    for each in found:
        alert = standing.get(each["model"], {}).get(f"{each['monitor']}/{each['subject']}")
        each["by"] = alert["acknowledged_by"] if alert else None
    return found


def _only(found: Told, flag: str) -> Told:
    return found if isinstance(found, str) else [each for each in found if each[flag]]
