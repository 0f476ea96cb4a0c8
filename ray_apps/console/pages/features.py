"""Pages of features: the views with their users, one view's freshness, fill and distributions, and batch sources."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.functions.pages.charts import NARROW, Point, Series, draw_distribution, draw_lines
from toque.functions.pages.rendering import number
from toque.ray_apps.console.page import ApiError
from toque.ray_apps.console.route import Entry, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Features", "features")
ROWS = 50
LIVE: Final = ("features/*", "tables/features")
"""Definitions and loads of sources, and rows of the views."""
_SPANS: Final = (1, 24, 168, 720)
_LINES = 6
_VALUES = 4  # most frequent ones, whose shares are drawn


@router.get("/features")
async def list_features(
    page: Viewer,
    words: Annotated[str, Query(max_length=400)] = "",
    after: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """List the views with owner, newest event and users, a page at a time, and the batch sources' last loads."""
    views, sources = await asyncio.gather(
        page.api.call("feature_catalog", words=words.split()), page.api.call("source_status", loads=1)
    )
    left = [view | {"stale": _is_stale(view, page.now)} for view in views if view["name"] > after]
    return await page.render(
        "features.html",
        live=LIVE,
        views=left[:ROWS],
        sources=sources,
        words=words,
        after=after,
        following=left[ROWS - 1]["name"] if len(left) > ROWS else None,
    )


@router.get("/features/{view}")
async def show_view(
    page: Viewer, view: str, hours: Annotated[float, Query(gt=0, le=24 * 366)] = 24.0
) -> Response:
    """Show one view: how fresh and full it is and how distributed, now and over time, who uses what, and what alarms say of it."""
    entries = await page.api.call("feature_catalog", words=[view])
    entry = next((entry for entry in entries if entry["name"] == view), None)
    if entry is not None and entry["kind"] != "feature_view":
        return page.go(
            page.link("features")
        )  # computed on demand: it stands in the list, and stores no rows to draw
    figures, history, course, alarms = await asyncio.gather(
        page.api.call("feature_statistics", view=view, span_hours=hours),
        page.api.call("feature_health_history", view=view),
        page.api.call("feature_course", view=view, span_hours=hours),
        page.told(page.api.call("open_alarms")),
    )
    assert entry is not None  # noqa: S101  # the calls above refuse a view that is not there
    health, refusal = None, ""
    try:
        found = await page.api.call("feature_health", views=[view], span_hours=hours, samples=0)
        health = found[0]
    except ApiError as error:  # the online store is away: all else is known without it
        refusal = error.detail
    return await page.render(
        "feature_view.html",
        live=LIVE,
        view=view,
        entry=entry,
        stale=_is_stale(entry, page.now),
        health=health,
        refusal=refusal,
        figures=figures,
        bars={figure["name"]: draw_distribution(figure) for figure in figures},
        courses={figure["name"]: _course(figure["name"], course) for figure in figures},
        alarms=alarms if isinstance(alarms, str) else _of_view(alarms, entry),
        fill=_over_time(history, "fill"),
        freshness=_over_time(history, "freshness_s"),
        hours=hours,
        spans=_SPANS,
    )


@router.get("/sources/{source}")
async def show_source(page: Viewer, source: str) -> Response:
    """Show one batch source: what it reads, who uses it, and what its last loads brought or kept aside."""
    found = await page.api.call("source_status", sources=[source], loads=ROWS)
    return await page.render("source.html", live=LIVE, source=found[0])


def _is_stale(view: dict[str, Any], now: datetime) -> bool:
    """Whether no row of a view is young enough to be served."""
    newest, ttl_s = view["newest_event"], view["ttl_s"]
    if newest is None or ttl_s is None:
        return False
    return (now - datetime.fromisoformat(newest)).total_seconds() > float(ttl_s)


def _of_view(alarms: list[dict[str, Any]], view: dict[str, Any]) -> list[dict[str, Any]]:
    """Keep the alarms that are about features of a view: skew, drift and quality, of the models that were made with it."""
    models = {each["model"] for each in view["models"]}
    names = {each["name"] for each in view["features"]}

    def concerns(alarm: dict[str, Any]) -> bool:
        read = {alarm["subject"], *alarm["columns"]}  # a service may put a prefix before a feature's name
        return any(each in names or each.rpartition("__")[2] in names for each in read)

    return [alarm for alarm in alarms if alarm["model"] in models and concerns(alarm)]


def _course(name: str, parts: list[dict[str, Any]]) -> Markup:
    """Draw how a feature was distributed over time: the median within its quartiles, or the shares of the most frequent values."""
    found = [(_middle(part), each) for part in parts for each in part["features"] if each["name"] == name]
    if any(each["quartiles"] for _, each in found):
        return draw_lines(
            [Series("median", [_quartiles(at, each) for at, each in found if each["quartiles"]])],
            label=f"Median and quartiles of {name} over time",
            width=NARROW,
        )
    shares: dict[str, float] = {}
    for _, each in found:
        for value, share in each["top"]:
            shares[value] = shares.get(value, 0.0) + share
    frequent = sorted(shares, key=lambda value: shares[value], reverse=True)[:_VALUES]
    lines = [
        Series(
            str(value), [Point(at, dict(each["top"]).get(value, 0.0)) for at, each in found if each["rows"]]
        )
        for value in frequent
    ]
    return draw_lines(lines, label=f"Shares of the most frequent values of {name} over time", width=NARROW)


def _quartiles(at: datetime, feature: dict[str, Any]) -> Point:
    low, median, high = feature["quartiles"]
    note = (
        f"{number(median)}, half of them from {number(low)} to {number(high)}, {number(feature['rows'])} rows"
    )
    return Point(at, median, low, high, note)


def _middle(part: dict[str, Any]) -> datetime:
    start, end = (datetime.fromisoformat(part[name]) for name in ("start", "end"))
    return start + (end - start) / 2


def _over_time(history: list[dict[str, Any]], metric: str) -> Markup:
    """Draw a figure that was measured now and then; the fill of as many features as there are colours."""
    lines: dict[str, list[Point]] = {}
    for each in history:
        if each["metric"] == metric and each["value"] is not None:
            at = datetime.fromisoformat(each["measured_at"])
            lines.setdefault(each["feature"] or metric, []).append(Point(at, each["value"]))
    lowest = sorted(lines.items(), key=lambda line: line[1][-1].value)[:_LINES]
    return draw_lines(
        [Series(name, points) for name, points in lowest], label=f"{metric} over time", width=NARROW
    )
