"""`toque rollout`, `drift`, `monitors`, `incidents`, `why` and `alerts`: what the inspector found, and what became of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_apps.cli.client import client_of
from ray_apps.cli.command import add, group
from ray_apps.cli.commands import rollout_table
from ray_apps.cli.commands.calls import call, read_json
from ray_apps.cli.output import table, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands."""
    _register_rollout(commands)
    drift = add(
        commands, "drift", _drift, "compare the present window of a model's inputs with its training set"
    )
    drift.add_argument("model")
    standing = add(commands, "incidents", _incidents, "alarms and broken feeds of a model that still stand")
    standing.add_argument("model")
    watched = add(commands, "monitors", _monitors, "what each monitor of a model judged last")
    watched.add_argument("model")
    why = add(commands, "why", _why, "what changed behind an alarm, by its part in the loss; writes a page")
    why.add_argument("model")
    why.add_argument("--alarm", help="its key, as `incidents` tells; default the newest")
    _register_alerts(commands)


def _register_rollout(commands: Commands) -> None:
    rollout = group(
        commands,
        "rollout",
        "rollouts: plan, start, status, tick, pause, resume, promote, abort, end, explain, page",
    )
    status = add(rollout, "status", _status, "the open rollout and how the last ones ended")
    status.add_argument("model")
    status.add_argument(
        "-f",
        "--follow",
        "--watch",
        action="store_true",
        help="show it as a table until it has ended; exit code 1 unless it was promoted",
    )
    add(rollout, "tick", _tick, "look at the open rollout now").add_argument("model")
    start = add(rollout, "start", _start, "roll a version out, first as a shadow")
    start.add_argument("model")
    start.add_argument("version", type=int)
    start.add_argument("--reason", default="")
    start.add_argument(
        "--rivals", type=int, nargs="*", default=[], help="further versions in the same shadow"
    )
    start.add_argument(
        "--policy",
        metavar="JSON",
        help='as in {"canary_share": 0.05}, @file or -; default: what the project declares for the model',
    )
    planned = add(rollout, "plan", _plan, "what a rollout may be expected to find, and when; starts nothing")
    planned.add_argument("model")
    planned.add_argument("version", type=int)
    planned.add_argument(
        "--effect", type=float, help="improvement in mean loss; default 2 %% of the champion's loss"
    )
    planned.add_argument("--days", type=int, default=28, help="past days of the log to plan from")
    paged = add(rollout, "page", _page, "write the page of a rollout into the store; prints its key")
    paged.add_argument("model")
    paged.add_argument("--rollout", type=int, help="journal entry that began it; default the newest")
    explained = add(rollout, "explain", _explain, "make a recorded decision again, from the journal alone")
    explained.add_argument("model")
    explained.add_argument("entry", type=int)
    _register_changes(rollout)


def _register_changes(rollout: Commands) -> None:
    for name, run, text in (
        ("pause", _pause, "stop advancing; guardrails go on"),
        ("resume", _resume, "go on after a pause"),
        ("promote", _promote, "make the challenger the champion now, in your own name"),
        ("abort", _abort, "roll the challenger back now, in your own name"),
    ):
        changing = add(rollout, name, run, text)
        changing.add_argument("model")
        changing.add_argument("--reason", required=True)
    end = add(rollout, "end", _end, "end it by hand")
    end.add_argument("model")
    end.add_argument("action", choices=["promote", "roll_back", "inconclusive"])
    end.add_argument("--reason", required=True)


def _register_alerts(commands: Commands) -> None:
    alerts = group(commands, "alerts", "what people were told of a model: status, ack, silence")
    add(
        alerts, "status", _alerts, "what was told and stands, who looks after it, what is silenced"
    ).add_argument("model")
    for name, run, text in (
        ("ack", _ack, "look after what stands: it is not told again, its end is"),
        ("silence", _silence, "tell nobody about something for some hours"),
    ):
        changing = add(alerts, name, run, text)
        changing.add_argument("model")
        changing.add_argument(
            "about", help="'monitor/subject' as alerts name it; for silence also a monitor, or '*'"
        )
        if run is _silence:
            changing.add_argument("--hours", type=float, required=True, help="0 ends a silence")
            changing.add_argument("--reason", required=True)


def _status(given: argparse.Namespace) -> int:
    if given.follow:
        return rollout_table.follow(client_of(given), given.model)
    return _call(given, "rollout_status")


def _tick(given: argparse.Namespace) -> int:
    return _call(given, "tick_rollout")


def _start(given: argparse.Namespace) -> int:
    policy = None if given.policy is None else read_json(given.policy)
    return _call(
        given,
        "start_rollout",
        version=given.version,
        policy=policy,
        reason=given.reason,
        rivals=given.rivals,
    )


def _plan(given: argparse.Namespace) -> int:
    return _call(given, "plan_rollout", version=given.version, effect=given.effect, days=given.days)


def _page(given: argparse.Namespace) -> int:
    return _call(given, "rollout_report", rollout=given.rollout)


def _explain(given: argparse.Namespace) -> int:
    return _call(given, "explain_rollout", entry=given.entry)


def _pause(given: argparse.Namespace) -> int:
    return _call(given, "pause_rollout", reason=given.reason)


def _resume(given: argparse.Namespace) -> int:
    return _call(given, "resume_rollout", reason=given.reason)


def _promote(given: argparse.Namespace) -> int:
    return _call(given, "end_rollout", action="promote", reason=given.reason)


def _abort(given: argparse.Namespace) -> int:
    return _call(given, "end_rollout", action="roll_back", reason=given.reason)


def _end(given: argparse.Namespace) -> int:
    return _call(given, "end_rollout", action=given.action, reason=given.reason)


def _drift(given: argparse.Namespace) -> int:
    return _call(given, "watch_drift")


def _incidents(given: argparse.Namespace) -> int:
    return _call(given, "standing_alarms")


def _monitors(given: argparse.Namespace) -> int:
    found = call(client_of(given), "monitor_status", {"model": given.model})
    rows = [
        (one["monitor"], one["judged_until"], one["rows"], one["subjects"], "; ".join(one["wrong"]) or "well")
        for one in found
    ]
    table(("monitor", "judged until", "rows", "subjects", ""), rows)
    return 0


def _why(given: argparse.Namespace) -> int:
    return _call(given, "alarm_report", alarm=given.alarm)


def _alerts(given: argparse.Namespace) -> int:
    return _call(given, "alert_status")


def _ack(given: argparse.Namespace) -> int:
    return _call(given, "acknowledge_alert", about=given.about)


def _silence(given: argparse.Namespace) -> int:
    return _call(given, "silence_alerts", about=given.about, hours=given.hours, reason=given.reason)


def _call(given: argparse.Namespace, function: str, **arguments: object) -> int:
    value(call(client_of(given), function, {"model": given.model, **arguments}))
    return 0
