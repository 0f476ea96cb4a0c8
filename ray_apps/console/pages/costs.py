"""Pages of costs, by function, model, team, caller or day, and of the queue: what waits for what, and each team's quota."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from starlette.responses import Response

from toque.functions.pages.charts import draw_bars
from toque.ray_apps.console.route import Entry, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Costs", "costs")
QUEUE_ENTRY = Entry("Queue", "queue")
_DAYS: Final = (1, 7, 30)
_BY: Final = ("function", "model", "team", "caller", "day")
_SUMMED: Final = ("invocations", "attempts", "queue_s", "run_s", "cpu_s", "gpu_s", "store_reads", "store_writes", "money")  # fmt: skip
_BARS = 30
_CHARS, _FEWEST_CHARS = 100, 12  # of the names under all bars, and of each at least
By = Literal["function", "model", "team", "caller", "day"]


@router.get("/queue")
async def show_queue(page: Viewer) -> Response:
    """Show the experiments that run and wait, the teams' quotas, and this month's budgets."""
    admissions, quotas, budgets = await asyncio.gather(
        page.api.call("admissions"), page.api.call("quotas"), page.api.call("budgets")
    )
    running = [admission for admission in admissions if admission["waits_for"] is None]
    return await page.render(
        "queue.html",
        live=("invocations/*", "quotas"),
        running=running,
        waiting=[admission for admission in admissions if admission["waits_for"] is not None],
        teams=_teams(quotas, running),
        budgets=[budget | {"left": max(0.0, budget["limit"] - budget["spent"])} for budget in budgets],
    )


@router.get("/costs")
async def show_costs(
    page: Viewer,
    days: Annotated[int, Query(ge=1, le=3_650)] = 7,
    by: By = "function",
    of: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Show what was used in some days, in sums; `of` is the function, model, team or caller that is looked at alone."""
    known, prices, quotas = await asyncio.gather(
        page.api.get("/costs/known", days=days), page.api.get("/prices"), page.api.call("quotas")
    )
    teams = {member: team for team, quota in quotas.items() for member in quota["members"]}
    named = [each | {"team": teams.get(each["caller"], each["caller"])} for each in known["rows"]]
    looked_at = [each for each in named if not of or of in {each[name] for name in _BY}]
    priced = [each | {"money": None if prices is None else _money(each, prices)} for each in looked_at]
    groups = _grouped(priced, by)
    size = "cpu_s" if prices is None else "money"
    room = max(_FEWEST_CHARS, _CHARS // max(1, min(len(groups), _BARS)))
    bars = [(str(each["name"])[:room], each[size]) for each in groups[:_BARS]]
    return await page.render(
        "costs.html",
        live=("invocations/*",),
        groups=groups,
        behind=known["behind"],
        never=known["never"],
        total=_sum("all", priced),
        currency=None if prices is None else prices["currency"],
        chart=draw_bars(bars, label=f"{'CPU seconds' if prices is None else 'Price'} by {by}"),
        days=days,
        choices=_DAYS,
        sums=_BY,
        by=by,
        of=of,
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


def _grouped(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Sum rows by a column: days in their order, others by what they cost most."""
    names = dict.fromkeys(row[by] for row in rows)
    found = [_sum(name, [row for row in rows if row[by] == name]) for name in names]
    if by == "day":
        return sorted(found, key=lambda each: str(each["name"]))
    return sorted(found, key=lambda each: (each["money"] or 0.0, each["cpu_s"]), reverse=True)


def _sum(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {
        field: None if rows and rows[0][field] is None else sum(row[field] for row in rows)
        for field in _SUMMED
    }
    return {"name": name} | sums


def _money(row: Mapping[str, Any], prices: Mapping[str, Any]) -> float:
    """Compute the price of a row, as `toque invocations costs` does."""
    hours = (row["cpu_s"] * prices["cpu_hour"] + row["gpu_s"] * prices["gpu_hour"]) / 3600
    reads, writes = (prices.get(f"store_{kind}_1000") or 0.0 for kind in ("reads", "writes"))
    return float(hours + (row["store_reads"] * reads + row["store_writes"] * writes) / 1000)
