"""`toque monitors`, `incidents`, `drift`, `why` and `alerts`: what monitors found, and what became of it."""

from __future__ import annotations

import argparse
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, Refused, client_of
from ray_apps.cli.command import MODEL, REASON, add, add_limit, group
from ray_apps.cli.commands.calls import call
from ray_apps.cli.names import known_among, names_of, require, require_model
from ray_apps.cli.output import Column, chosen, facts, listing, message, note, say, table, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    watched = add(commands, "monitors", _monitors, "show what each monitor of a model judged last")
    watched.add_argument("model", help=MODEL)
    add_limit(watched, default=None)
    standing = add(
        commands, "incidents", _incidents, "list the alarms and broken feeds of a model that still stand"
    )
    standing.add_argument("model", help=MODEL)
    add_limit(standing)
    why = add(
        commands, "why", _why, "show what changed behind an alarm, by its part in the loss; writes a page"
    )
    why.add_argument("model", help=MODEL)
    why.add_argument(
        "--alarm",
        metavar="KEY",
        help="as `toque incidents MODEL -o wide` shows it (default: the newest alarm)",
    )
    drift = add(
        commands, "drift", _drift, "compare the present window of a model's inputs with its training set"
    )
    drift.add_argument("model", help=MODEL)
    _register_alerts(commands)


def _register_alerts(commands: Commands) -> None:
    alerts = group(commands, "alerts", "show, acknowledge and silence what people are told of a model")
    status = add(
        alerts, "status", _alerts, "show what was told and stands, who looks after it, what is silenced"
    )
    status.add_argument("model", help=MODEL)
    add_limit(status)
    taking = add(alerts, "ack", _ack, "look after what stands: it is not told again, its end is")
    taking.add_argument("model", help=MODEL)
    taking.add_argument("about", help="MONITOR/SUBJECT, as `toque alerts status MODEL` shows it")
    silencing = add(alerts, "silence", _silence, "tell nobody about something for some hours")
    silencing.add_argument("model", help=MODEL)
    silencing.add_argument(
        "about", help="MONITOR/SUBJECT as alerts name it, a monitor, or '*' for everything"
    )
    silencing.add_argument(
        "--hours", type=float, required=True, metavar="H", help="how long; 0 ends a silence"
    )
    silencing.add_argument("--reason", required=True, help=REASON)


def _monitors(given: argparse.Namespace) -> int:
    found = _asked(given, "monitor_status")
    empty = f"no monitor of {given.model} has judged anything yet"
    listing(given.output, _MONITORS, found, empty=empty, limit=given.limit)
    return 0


def _incidents(given: argparse.Namespace) -> int:
    found = _asked(given, "standing_alarms")[::-1]  # the function gives the oldest first
    empty = f"no alarm of {given.model} stands"
    listing(given.output, _ALARMS, found, empty=empty, limit=given.limit)
    return 0


def _why(given: argparse.Namespace) -> int:
    client = client_of(given)
    require_model(client, given.model)
    report = _alarm_report(client, given)
    how = chosen(given.output)
    if how == "json":
        value(report)
    elif how == "tsv":
        table(how, _CAUSES, report["causes"]["causes"])
    else:
        facts(how, _REPORT, report)
        say("")
        table(how, _CAUSES, report["causes"]["causes"])
    return 0


def _alarm_report(client: Client, given: argparse.Namespace) -> dict[str, Any]:
    try:
        report: dict[str, Any] = call(client, "alarm_report", {"model": given.model, "alarm": given.alarm})
    except Refused as refused:
        if given.alarm is None or refused.status != HTTPStatus.CONFLICT:
            raise
        standing = names_of(call(client, "standing_alarms", {"model": given.model}), "key")
        see = f"toque incidents {given.model} -o wide"
        require("alarm", given.alarm, standing, see=see, place=f" of {given.model}")
        raise
    return report


def _drift(given: argparse.Namespace) -> int:
    found = _asked(given, "watch_drift")
    how = chosen(given.output)
    if how == "json":
        value(found)
    elif how == "tsv":
        table(how, _ALARMS, found["alarms"])
        note(found["text"])
    else:
        facts(how, _WATCHED, found)
        if found["alarms"]:
            say("")
            table(how, _ALARMS, found["alarms"])
    return 0


def _alerts(given: argparse.Namespace) -> int:
    _print_alerts(given, _asked(given, "alert_status"), limit=given.limit)
    return 0


def _ack(given: argparse.Namespace) -> int:
    client = client_of(given)
    require_model(client, given.model)

    def standing() -> list[str]:
        return list(call(client, "alert_status", {"model": given.model})["standing"])

    see, place = f"toque alerts status {given.model}", f" of {given.model} that stands"
    with known_among("alert", given.about, standing, see=see, place=place):
        state = call(client, "acknowledge_alert", {"model": given.model, "about": given.about})
    message(given.output, f"you look after {given.about} of {given.model}; nobody is told of it again", state)
    return 0


def _silence(given: argparse.Namespace) -> int:
    client = client_of(given)
    require_model(client, given.model)
    if given.about != "*":
        see = f"toque monitors {given.model}"
        require("monitor", given.about.partition("/")[0], _monitor_names(client, given.model), see=see)
    arguments = {"about": given.about, "hours": given.hours, "reason": given.reason}
    state = call(client, "silence_alerts", {"model": given.model, **arguments})
    ends = next((each["until"] for each in state["silences"] if each["about"] == given.about), None)
    if given.hours and ends:
        text = f"nobody is told of {given.about} of {given.model} until {ends[:16].replace('T', ' ')} UTC"
    else:
        text = f"people are told of {given.about} of {given.model} again"
    message(given.output, text, state)
    return 0


def _monitor_names(client: Client, model: str) -> list[str]:
    """The kinds of alarms there are, and the monitors that have judged the model."""
    alarm = client.get("/functions/standing_alarms")["output_schema"]["$defs"]["Alarm"]
    kinds: list[str] = alarm["properties"]["monitor"]["enum"]
    judged = names_of(call(client, "monitor_status", {"model": model}), "monitor")
    return list(dict.fromkeys([*kinds, *judged]))


def _print_alerts(given: argparse.Namespace, state: dict[str, Any], *, limit: int) -> None:
    """One table: what stands and what is silenced, the newest first."""
    if chosen(given.output) == "json":
        value(state)
        return
    standing = [
        {
            "about": about,
            "state": "told",
            "at": one["told_at"],
            "until": None,
            "by": one["acknowledged_by"],
            "reason": None,
        }
        for about, one in state["standing"].items()
    ]
    silences = [{**one, "state": "silenced", "at": None} for one in state["silences"]]
    rows = sorted(standing, key=lambda one: str(one["at"]), reverse=True) + silences
    empty = f"nothing was told of {given.model} that stands, and nothing is silenced"
    listing(given.output, _ALERTS, rows, empty=empty, limit=limit)


def _asked(given: argparse.Namespace, function: str) -> Any:
    """What a function says of a model that is known. Raises: UnknownName."""
    client = client_of(given)
    require_model(client, given.model)
    return call(client, function, {"model": given.model})


_MONITORS = (
    Column("monitor", "monitor"),
    Column("judged until", "judged_until"),
    Column("rows", "rows"),
    Column("subjects", "subjects"),
    Column("wrong", lambda row: "; ".join(row["wrong"]) or "nothing", text=True),
    Column("judged at", "judged_at", wide=True),
)
_ALARMS = (
    Column("raised", "raised_at"),
    Column("monitor", "monitor"),
    Column("subject", "subject"),
    Column("version", "version"),
    Column("what", "text", text=True),
    Column("ended", "recovered", wide=True),
    Column("features", "columns", wide=True),
    Column("rows from", "start", wide=True),
    Column("rows until", "end", wide=True),
    Column("statistic", "statistic", wide=True),
    Column("threshold", "threshold", wide=True),
    Column("explained by", "explained_by", wide=True),
    Column("key", "key", wide=True),
)
_WATCHED = (
    Column("model", "model"),
    Column("monitor", "monitor"),
    Column("version", "version"),
    Column("cohorts judged", "cohorts"),
    Column("new alarms", lambda row: len(row["alarms"])),
    Column("what", "text", text=True),
)
_REPORT = (
    Column("alarm", lambda row: row["causes"]["alarm"]["key"]),
    Column("what", lambda row: row["causes"]["text"], text=True),
    Column("labelled rows before", lambda row: row["causes"]["rows_before"]),
    Column("labelled rows in its window", lambda row: row["causes"]["rows"]),
    Column("loss before", lambda row: row["causes"]["loss_before"]),
    Column("loss in its window", lambda row: row["causes"]["loss"]),
    Column("page", "key"),
)
_CAUSES = (
    Column("since", "since"),
    Column("kind", "kind"),
    Column("what", "what"),
    Column("part in the loss", "contribution"),
    Column("standard error", "error", wide=True),
    Column("how it changed", "text", text=True),
)
_ALERTS = (
    Column("about", "about"),
    Column("state", "state"),
    Column("told", "at"),
    Column("until", "until"),
    Column("by", "by"),
    Column("reason", "reason", text=True),
)
