"""`toque features`: the views there are, how fresh and full they are, and what their rows look like."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import add
from ray_apps.cli.commands.calls import call
from ray_apps.cli.output import say, table

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

SAMPLES = 3


def register(commands: Commands) -> None:
    """Add the command."""
    features = add(commands, "features", _features, "feature views: freshness, fill, coverage and samples")
    features.add_argument("views", nargs="*", metavar="VIEW", help="show these feature by feature")
    features.add_argument(
        "--hours", type=float, default=24.0, help="how much of the newest event time is read (default: 24)"
    )


def _features(given: argparse.Namespace) -> int:
    asked = {"views": given.views or None, "span_hours": given.hours, "samples": SAMPLES}
    found: list[dict[str, Any]] = call(client_of(given), "feature_health", asked)
    if given.views:
        for health in found:
            _show(health)
        return 0
    columns = ("view", "rows", "newest event", "age", "ttl", "recent rows", "keys", "fill", "online", "owner")
    table(columns, [_line(health) for health in found])
    return 0


def _line(health: dict[str, Any]) -> tuple[Any, ...]:
    fill = min(health["fill"].values(), default=None)
    return (
        health["view"],
        health["rows"],
        health["newest_event"],
        _span(health["freshness_s"]),
        _span(health["ttl_s"]),
        health["recent_rows"],
        health["keys"],
        _share(fill),
        _share(health["coverage"]),
        health["owner"] or None,
    )


def _show(health: dict[str, Any]) -> None:
    table(("view", "rows", "files", "newest event", "age", "recent rows", "keys", "online", "online until"), [
        (
            health["view"], health["rows"], health["files"], health["newest_event"],
            _span(health["freshness_s"]), health["recent_rows"], health["keys"],
            _share(health["coverage"]), health["online_until"],
        )
    ])  # fmt: skip
    names = list(health["fill"])
    samples = health["samples"]
    headings = ("feature", "fill", *(f"row {number}" for number in range(1, len(samples) + 1)))
    table(headings, [(name, _share(health["fill"][name]), *(row[name] for row in samples)) for name in names])
    others = [name for name in (samples[0] if samples else {}) if name not in names]
    for number, row in enumerate(samples, start=1):
        say(f"row {number}: " + ", ".join(f"{name} {row[name]}" for name in others))


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _span(seconds: float | None) -> str | None:
    """As "2d 3h", "3h 20min" or "45s": the two greatest units."""
    if seconds is None:
        return None
    left, told = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            told.append(f"{count}{unit}")
    return " ".join(told[:2]) or "0s"
