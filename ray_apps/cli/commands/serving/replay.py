"""`toque replay`: whether a version still answers its logged requests with the same bits."""

from __future__ import annotations

from toque.ray_apps.cli.arguments import MODEL, arg
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.names import ask
from toque.ray_apps.cli.output import columns, facts_and_table

_VERSION = arg("--version V", "number of the version, or an alias (default: %(default)s)", default="champion")
_SINCE = arg("--since TIME", "from when on, as 2026-05-01T00:00:00Z (default: 7 days ago)")
_LIMIT = arg("--limit N", "about how many rows, the newest (default: %(default)s)", type=int, default=10_000)


def register(commands: Commands) -> None:
    """Add the command of this module."""
    add(commands, "replay", _replay, MODEL, _VERSION, _SINCE, _LIMIT)


def _replay(given: Given) -> int:
    """Score logged inputs again by the same version and compare outputs bit for bit; exit code 1 if any differs."""
    version = int(given.version) if given.version.isdecimal() else given.version
    asked = {"version": version, "limit": given.limit} | ({"since": given.since} if given.since else {})
    found = ask(given, "replay_predictions", **asked)
    facts_and_table(given.output, _RESULT, found, _DIFFERENCES, found["first"])
    return int(found["different"] > 0)


_RESULT = columns(
    "model | version | rows read: rows | equal | different | not scored again: skipped",
    wide="beside rows that are not in the log: filled",
    values={"not scored again": lambda row: _counts(row["skipped"])},
)
_DIFFERENCES = columns(
    "prediction: prediction_id | output | rows in its batch: batch_rows | logged | replayed"
)


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "0"
