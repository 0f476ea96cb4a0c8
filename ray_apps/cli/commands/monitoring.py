"""`toque monitor status` and `alerts status`: what monitors judged, and which alerts stand."""

from __future__ import annotations

from toque.ray_apps.cli.arguments import MODEL, Commands, Given, add, group, limit
from toque.ray_apps.cli.commands import predict
from toque.ray_apps.cli.names import ask
from toque.ray_apps.cli.output import (
    chosen,
    columns,
    listing,
    note,
    value,
)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    monitors = group(
        commands, "monitor", "Show what monitors found, and what became of requests and their labels."
    )
    add(monitors, "status", _monitors, MODEL, limit(None))
    predict.register_records(monitors)
    alerts = group(commands, "alerts", "Show, acknowledge and silence what people are told of a model.")
    add(alerts, "status", _alerts, MODEL, limit())


def _monitors(given: Given) -> None:
    """Show what each monitor of a model judged last, which cohort is next, and today's figures so far."""
    empty = f"no monitor of {given.model} has looked yet: the first cohort is judged once it has ended"
    listing(given.output, _MONITORS, ask(given, "monitor_status"), empty=empty, limit=given.limit)
    today = ask(given, "running_figures")
    until = today["logged_until"]
    logged = f"logged until {until[11:16]} UTC" if until else "none is in the log"
    note(
        f"today so far: {today['answers']} answers, {today['unanswered']} requests without one, {today['labels']} labels; {logged}"
    )


def _alerts(given: Given) -> None:
    """Show what was told and stands, who looks after it, what is silenced."""
    state = ask(given, "alert_status")
    if chosen(given.output) == "json":
        value(state)
        return
    told = [
        one | {"about": about, "state": "told", "by": one["acknowledged_by"]}
        for about, one in state["standing"].items()
    ]
    silences = [one | {"state": "silenced"} for one in state["silences"]]
    rows = sorted(told, key=lambda one: str(one["told_at"]), reverse=True) + silences
    empty = f"nothing was told of {given.model} that stands, and nothing is silenced"
    listing(given.output, _ALERTS, rows, empty=empty, limit=given.limit)


_MONITORS = columns(
    "monitor | judged until: judged_until | rows | subjects | wrong | next cohort ends: next_end",
    wide="judged at: judged_at | next cohort starts: next_start",
    texts="wrong",
    values={"wrong": lambda row: "; ".join(row["wrong"]) or "nothing"},
)
_ALERTS = columns("about | state | told: told_at? | until: until? | by | reason: reason?", texts="reason")
