"""`toque monitors`, `scores`, `incidents`, `drift`, `why` and `alerts`: what monitors found, and what became of it."""

from __future__ import annotations

from typing import Any

from toque.ray_apps.cli.arguments import MODEL, REASON_REQUIRED, Commands, Given, add, arg, group, limit
from toque.ray_apps.cli.client import call
from toque.ray_apps.cli.names import ask, require, require_model
from toque.ray_apps.cli.output import (
    chosen,
    columns,
    facts_and_table,
    listing,
    message,
    note,
    see_page,
    value,
)

_ALARM = arg("--alarm KEY", "as `toque incidents MODEL -o wide` shows it (default: the newest alarm)")
_ALERT = arg("alert about", "MONITOR/SUBJECT, as `toque alerts status MODEL` shows it")
_ABOUT = arg("about", "MONITOR/SUBJECT as alerts name it, a monitor, or '*' for everything")
_HOURS = arg("--hours H", "how long; 0 ends a silence", type=float, required=True)

_SINCE = arg("--days D", "how far back (default: 30)", type=float, default=30.0)
_WITHIN = arg("--hours H", "how far back (default: 24)", type=float, default=24.0)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "monitors", _monitors, MODEL, limit(None))
    add(commands, "scores", _scores, MODEL, _SINCE, limit(None))
    add(commands, "labels", _labels, _WITHIN)
    add(commands, "incidents", _incidents, MODEL, limit())
    add(commands, "why", _why, MODEL, _ALARM)
    add(commands, "drift", _drift, MODEL)
    alerts = group(commands, "alerts", "Show, acknowledge and silence what people are told of a model.")
    add(alerts, "status", _alerts, MODEL, limit())
    add(alerts, "ack", _ack, MODEL, _ALERT)
    add(alerts, "silence", _silence, MODEL, _ABOUT, _HOURS, REASON_REQUIRED)


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


def _scores(given: Given) -> None:
    """Show the mean scores of a language model's live answers by version and arm, each with its interval."""
    found = ask(given, "live_scores", days=given.days)
    empty = (
        f"no answer of {given.model} is scored: `toque run set_language_monitors` sets scorers, which run every "
        "ten minutes"
    )
    listing(given.output, _SCORES, found, empty=empty, limit=given.limit)


def _labels(given: Given) -> None:
    """Count the labels that came in, and those that belong to no logged prediction."""
    found = call(given.client, "unknown_labels", {"hours": given.hours})
    such = f", such as {', '.join(found['examples'])}" if found["examples"] else ""
    text = f"{found['labels']} labels in the last {given.hours:g} hours, {found['unknown']} of them for no prediction in the log{such}"
    message(given.output, text, found)


def _incidents(given: Given) -> None:
    """List the alarms and broken feeds of a model that still stand."""
    found = ask(given, "standing_alarms")[::-1]  # the function gives the oldest first
    listing(given.output, _ALARMS, found, empty=f"no alarm of {given.model} stands", limit=given.limit)
    see_page(given.output, given.client.page("monitors", given.model))


def _why(given: Given) -> None:
    """Show what changed behind an alarm, by its part in the loss; writes a page."""
    report = ask(given, "alarm_report", alarm=given.alarm)
    facts_and_table(given.output, _REPORT, report, _CAUSES, report["causes"]["causes"])


def _drift(given: Given) -> None:
    """Compare the present window of a model's inputs with its training set."""
    found = ask(given, "watch_drift")
    facts_and_table(given.output, _WATCHED, found, _ALARMS, found["alarms"])
    if chosen(given.output) == "tsv":
        note(found["text"])


def _alerts(given: Given) -> None:
    """Show what was told and stands, who looks after it, what is silenced."""
    state = ask(given, "alert_status")
    if chosen(given.output) == "json":
        value(state)
        return
    told = [
        one | {"about": about, "state": "told", "by": one["acknowledged_by"], "until": None, "reason": None}
        for about, one in state["standing"].items()
    ]
    silences = [one | {"state": "silenced", "told_at": None} for one in state["silences"]]
    rows = sorted(told, key=lambda one: str(one["told_at"]), reverse=True) + silences
    empty = f"nothing was told of {given.model} that stands, and nothing is silenced"
    listing(given.output, _ALERTS, rows, empty=empty, limit=given.limit)


def _ack(given: Given) -> None:
    """Look after what stands: it is not told again, its end is."""
    state = ask(given, "acknowledge_alert", about=given.alert)
    message(given.output, f"you look after {given.alert} of {given.model}; nobody is told of it again", state)


def _silence(given: Given) -> None:
    """Tell nobody about something for some hours."""
    require_model(given)
    if given.about != "*":
        require(given, "monitor", given.about.partition("/")[0])
    asked = {"about": given.about, "hours": given.hours, "reason": given.reason}
    state: dict[str, Any] = call(given.client, "silence_alerts", {"model": given.model, **asked})
    ends = next((each["until"] for each in state["silences"] if each["about"] == given.about), None)
    if given.hours and ends:
        text = f"nobody is told of {given.about} of {given.model} until {ends[:16].replace('T', ' ')} UTC"
    else:
        text = f"people are told of {given.about} of {given.model} again"
    message(given.output, text, state)


_MONITORS = columns(
    "monitor | judged until: judged_until | rows | subjects | wrong | next cohort ends: next_end",
    wide="judged at: judged_at | next cohort starts: next_start",
    texts="wrong",
    values={"wrong": lambda row: "; ".join(row["wrong"]) or "nothing"},
)
_SCORES = columns(
    "scorer | version | arm | answers | mean | from: lower | to: upper",
    wide="first answer: since | last answer: until",
)
_ALARMS = columns(
    "raised: raised_at | monitor | subject | version | what: text",
    wide="ended: recovered | features: columns | rows from: start | rows until: end | statistic | threshold"
    " | explained by: explained_by | key",
    texts="what",
)
_WATCHED = columns(
    "model | monitor | version | cohorts judged: cohorts | new alarms | what: text",
    texts="what",
    values={"new alarms": lambda row: len(row["alarms"])},
)
_REPORT = columns(
    "alarm: causes.alarm.key | what: causes.text | labelled rows before: causes.rows_before"
    " | labelled rows in its window: causes.rows | loss before: causes.loss_before | loss in its window: causes.loss"
    " | page: key",
    texts="what",
)
_CAUSES = columns(
    "since | kind | what | part in the loss: contribution | how it changed: text",
    wide="standard error: error",
    texts="how it changed",
)
_ALERTS = columns("about | state | told: told_at | until | by | reason", texts="reason")
