"""`toque features`: the views there are, how fresh and full they are, and what their rows look like."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import add, add_limit
from ray_apps.cli.commands.calls import call
from ray_apps.cli.names import known_among, names_of
from ray_apps.cli.output import Column, chosen, listing, say, table, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

SAMPLES = 3  # newest rows of a view that are shown


def register(commands: Commands) -> None:
    """Add the command of this module."""
    features = add(
        commands, "features", _features, "show feature views: freshness, fill, coverage and samples"
    )
    features.add_argument(
        "views",
        nargs="*",
        metavar="VIEW",
        help="name of a view to show feature by feature (default: list all)",
    )
    features.add_argument(
        "--hours",
        type=float,
        default=24.0,
        metavar="H",
        help="how much of the newest event time is read (default: 24)",
    )
    add_limit(features, default=None)


def _features(given: argparse.Namespace) -> int:
    found = _health(client_of(given), given)
    how = chosen(given.output)
    if not given.views:
        listing(how, _VIEWS, found, empty="no feature view is applied", limit=given.limit)
    elif how == "json":
        value(found)
    elif how == "tsv":  # one table, so that a program reads one header
        table(how, [Column("view", "view"), *_FEATURE], [row for health in found for row in _rows(health)])
    else:
        for health in found:
            table(how, _VIEW, [health])
            say("")
            table(how, _FEATURE, _rows(health))
    return 0


def _health(client: Client, given: argparse.Namespace) -> list[dict[str, Any]]:
    def measured(views: list[str] | None) -> list[dict[str, Any]]:
        asked = {"views": views, "span_hours": given.hours, "samples": SAMPLES}
        found: list[dict[str, Any]] = call(client, "feature_health", asked)
        return found

    if not given.views:
        return measured(None)
    found = []
    for view in given.views:
        with known_among(
            "feature view", view, lambda: names_of(measured(None), "view"), see="toque features"
        ):
            found += measured([view])
    return found


def _rows(health: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each feature, then for each further column of the newest rows: its fill and what they hold of it."""
    samples = health["samples"]
    names = dict.fromkeys([*health["fill"], *(samples[0] if samples else ())])
    return [
        {"view": health["view"], "feature": name, "fill": health["fill"].get(name)}
        | {f"row {number}": row[name] for number, row in enumerate(samples, start=1)}
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


_VIEWS = (
    Column("view", "view"),
    Column("rows", "rows"),
    Column("newest event", "newest_event"),
    Column("age", lambda row: _span(row["freshness_s"])),
    Column("ttl", lambda row: _span(row["ttl_s"])),
    Column("recent rows", "recent_rows"),
    Column("keys", "keys"),
    Column("fill", lambda row: _share(min(row["fill"].values(), default=None))),
    Column("online", lambda row: _share(row["coverage"])),
    Column("owner", "owner", text=True),
    Column("files", "files", wide=True),
    Column("online until", "online_until", wide=True),
)
_VIEW = (
    *(each for each in _VIEWS if each.heading not in {"ttl", "fill", "owner", "files", "online until"}),
    Column("files", "files"),
    Column("online until", "online_until"),
)
_FEATURE = (
    Column("feature", "feature"),
    Column("fill", lambda row: _share(row["fill"])),
    Column("row 1", lambda row: row.get("row 1")),
    Column("row 2", lambda row: row.get("row 2")),
    Column("row 3", lambda row: row.get("row 3")),
)
