"""`toque features` and `toque sources`: the views there are, how fresh and full they are, and where their rows come from."""

from __future__ import annotations

from typing import Any

from ray_apps.cli.arguments import arg, limit
from ray_apps.cli.client import call
from ray_apps.cli.command import Commands, Given, add
from ray_apps.cli.output import Column, chosen, columns, listing, say, table

SAMPLES = 3  # newest rows of a view that are shown
_VIEW_NAMES = arg("views VIEW", "name of a view to show feature by feature (default: list all)", nargs="*")
_SOURCE_NAMES = arg("sources SOURCE", "name of a source to show load by load (default: list all)", nargs="*")
_HOURS = arg("--hours H", "how much of the newest event time is read (default: 24)", type=float, default=24.0)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "features", _features, _VIEW_NAMES, _HOURS, limit(None))
    add(commands, "sources", _sources, _SOURCE_NAMES, limit(None))


def _features(given: Given) -> None:
    """Show feature views: freshness, fill, coverage and samples."""
    asked = {"views": given.views or None, "span_hours": given.hours, "samples": SAMPLES}
    found = call(given.client, "feature_health", asked)
    how = chosen(given.output)
    if not given.views:
        listing(how, _VIEWS, found, empty="no feature view is applied", limit=given.limit)
    elif how in {"json", "tsv"}:  # one table, so that a program reads one header
        rows = [row for health in found for row in _rows(health)]
        table(how, [Column("view", "view"), *_FEATURE], rows, whole=found)
    else:
        for health in found:
            table(how, _VIEW, [health])
            say("")
            table(how, _FEATURE, _rows(health))


def _sources(given: Given) -> None:
    """Show batch sources: what they read, and what their last loads brought or kept aside."""
    found = call(given.client, "source_status", {"sources": given.sources or None})
    if not given.sources:
        rows = [each | {"last": next(iter(each["loads"]), None)} for each in found]
        listing(chosen(given.output), _SOURCES, rows, empty="no batch source is applied", limit=given.limit)
        return
    loads = [load for each in found for load in each["loads"]]
    table(chosen(given.output), _LOADS, loads, whole=found)


def _rows(health: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each feature, then for each further column of the newest rows: its fill and what they hold of it."""
    samples = health["samples"]
    names = dict.fromkeys([*health["fill"], *(samples[0] if samples else ())])
    newest = [samples[at] if at < len(samples) else {} for at in range(SAMPLES)]
    return [
        {"view": health["view"], "feature": name, "fill": health["fill"].get(name)}
        | {f"row {number}": row.get(name) for number, row in enumerate(newest, start=1)}
        for name in names
    ]


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _span(seconds: float | None) -> str | None:
    """A time as "2d 3h", "3h 20min" or "45s": its two greatest units."""
    if seconds is None:
        return None
    left, parts = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


_VALUES = {
    "age": lambda row: _span(row["freshness_s"]),
    "ttl": lambda row: _span(row["ttl_s"]),
    "fill": lambda row: _share(min(row["fill"].values(), default=None)),
    "online": lambda row: _share(row["coverage"]),
}
_VIEWS = columns(
    "view | rows | newest event: newest_event | age | ttl | recent rows: recent_rows | keys | fill | online | owner",
    wide="files | online until: online_until",
    texts="owner",
    values=_VALUES,
)
_VIEW = columns(
    "view | rows | newest event: newest_event | age | recent rows: recent_rows | keys | online | files"
    " | online until: online_until",
    values=_VALUES,
)
_SOURCES = columns(
    "source | reads | views | last load: last.at | rows: last.rows | rejected: last.rejected | owner",
    texts="owner | reads",
    values={"views": lambda row: ", ".join(row["views"])},
)
_LOADS = columns(
    "source | load: number | at | rows | known | rejected | reasons | unreadable",
    wide="first | last",
    values={
        "reasons": lambda row: "; ".join(f"{reason} ({count})" for reason, count in row["reasons"].items()),
        "unreadable": lambda row: "; ".join(row["unreadable"].values()),
    },
)
_FEATURE = columns("feature | fill | row 1 | row 2 | row 3", values={"fill": lambda row: _share(row["fill"])})
