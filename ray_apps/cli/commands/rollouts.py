"""`toque rollout`: plan, start, follow and end the rollout of a version."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import MODEL, REASON, VERSION, add, add_limit, group
from ray_apps.cli.commands import rollout_table
from ray_apps.cli.commands.calls import call, read_json
from ray_apps.cli.names import known_model, names_of, require, require_model
from ray_apps.cli.output import Column, chosen, facts, listing, message, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Command, Commands


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    rollout = group(commands, "rollout", "plan, start, follow, pause, promote and end rollouts of versions")
    status = _add(rollout, "status", _status, "show the rollouts of a model, the newest first")
    status.add_argument(
        "-f",
        "--follow",
        "--watch",
        action="store_true",
        help="show the newest one until it has ended; exit code 1 unless it was promoted",
    )
    add_limit(status)
    _add(rollout, "tick", _tick, "judge the open rollout now, as the schedule does")
    start = _add(rollout, "start", _start, "roll a version out, first as a shadow")
    start.add_argument("version", type=int, help=VERSION)
    start.add_argument("--reason", default="", help=REASON)
    start.add_argument(
        "--rivals",
        type=int,
        nargs="*",
        default=[],
        metavar="VERSION",
        help="further versions in the same shadow; the best goes on",
    )
    start.add_argument(
        "--policy",
        metavar="JSON",
        help='as in {"canary_share": 0.05}, @file or -; default: what the project declares for the model',
    )
    _register_reports(rollout)
    _register_changes(rollout)


def _register_reports(rollout: Commands) -> None:
    planned = _add(rollout, "plan", _plan, "say what a rollout would find, and when; starts nothing")
    planned.add_argument("version", type=int, help=VERSION)
    planned.add_argument(
        "--effect", type=float, help="improvement in mean loss (default: 2 %% of the champion's loss)"
    )
    planned.add_argument(
        "--days", type=int, default=28, metavar="N", help="past days of the log to plan from (default: 28)"
    )
    paged = _add(rollout, "page", _page, "write the page of a rollout into the store; prints its key")
    paged.add_argument(
        "--rollout",
        type=int,
        metavar="NUMBER",
        help="as `toque rollout status` shows it (default: the newest)",
    )
    explained = _add(rollout, "explain", _explain, "make a recorded decision again, from the journal alone")
    explained.add_argument("entry", type=int, help="number of the decision's entry in the journal")


def _register_changes(rollout: Commands) -> None:
    for name, run, text in (
        ("pause", _pause, "stop advancing; guardrails go on"),
        ("resume", _resume, "go on after a pause"),
        ("promote", _promote, "make the challenger the champion now, in your own name"),
        ("abort", _abort, "roll the challenger back now, in your own name"),
    ):
        _add(rollout, name, run, text).add_argument("--reason", required=True, help=REASON)
    end = _add(rollout, "end", _end, "end the open rollout by hand")
    end.add_argument(
        "action",
        choices=["promote", "roll_back", "inconclusive"],
        help="how it ends; the last leaves the champion",
    )
    end.add_argument("--reason", required=True, help=REASON)


def _add(rollout: Commands, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    made = add(rollout, name, run, text)
    made.add_argument("model", help=MODEL)
    return made


def _status(given: argparse.Namespace) -> int:
    client = client_of(given)
    require_model(client, given.model)
    if given.follow:
        return rollout_table.follow(client, given.model, output=given.output)
    history = call(client, "rollout_status", {"model": given.model})
    rows = _rows(history)
    if chosen(given.output) == "json":
        value(history | {"outcomes": history["outcomes"][-given.limit :]})
        return 0
    empty = f"{given.model} has never had a rollout"
    listing(given.output, _ROLLOUTS, rows, empty=empty, limit=given.limit)
    return 0


def _rows(history: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each rollout that is remembered, the newest first; it may be the open one."""
    current = history["current"]
    ended = {each["rollout"]: each for each in history["outcomes"]}
    rows = [each | {"reason": each["note"]} for each in ended.values()]
    if current is not None and current["rollout"] not in ended:
        rows.append(current | {"rule": None, "ended_at": None})
    return sorted(rows, key=lambda row: int(row["rollout"]), reverse=True)


def _tick(given: argparse.Namespace) -> int:
    facts(given.output, _TICK, _asked(given, "tick_rollout"))
    return 0


def _start(given: argparse.Namespace) -> int:
    policy = None if given.policy is None else read_json(given.policy)
    _require_versions(given, [given.version, *given.rivals])
    started = _asked(
        given,
        "start_rollout",
        version=given.version,
        policy=policy,
        reason=given.reason,
        rivals=given.rivals,
    )
    facts(given.output, _STATE, started)
    return 0


def _require_versions(given: argparse.Namespace, wanted: list[int]) -> None:
    """Make sure that the model and its versions are there. Raises: UnknownName."""
    client = client_of(given)
    with known_model(client, given.model):
        versions = names_of(client.get(f"/models/{given.model}/versions"), "version")
    see, place = f"toque models show {given.model}", f" of {given.model}"
    for version in wanted:
        require("version", str(version), versions, see=see, place=place)


def _plan(given: argparse.Namespace) -> int:
    _require_versions(given, [given.version])
    plan = _asked(given, "plan_rollout", version=given.version, effect=given.effect, days=given.days)
    message(given.output, plan["summary"], plan)
    return 0


def _page(given: argparse.Namespace) -> int:
    key = _asked(given, "rollout_report", rollout=given.rollout)
    message(given.output, key, key)
    return 0


def _explain(given: argparse.Namespace) -> int:
    explained = _asked(given, "explain_rollout", entry=given.entry)
    message(given.output, explained["text"], explained)
    return 0


def _pause(given: argparse.Namespace) -> int:
    return _changed(given, "pause_rollout")


def _resume(given: argparse.Namespace) -> int:
    return _changed(given, "resume_rollout")


def _promote(given: argparse.Namespace) -> int:
    return _changed(given, "end_rollout", action="promote")


def _abort(given: argparse.Namespace) -> int:
    return _changed(given, "end_rollout", action="roll_back")


def _end(given: argparse.Namespace) -> int:
    return _changed(given, "end_rollout", action=given.action)


def _changed(given: argparse.Namespace, function: str, **arguments: Any) -> int:
    facts(given.output, _STATE, _asked(given, function, reason=given.reason, **arguments))
    return 0


def _asked(given: argparse.Namespace, function: str, **arguments: Any) -> Any:
    """What a function says of a model that is known. Raises: UnknownName."""
    client = client_of(given)
    require_model(client, given.model)
    return call(client, function, {"model": given.model, **arguments})


def _versions(state: dict[str, Any]) -> list[int]:
    """The challengers that are still judged, the front-runner first."""
    return [state["challenger"], *state.get("rivals", [])]


def _stage(state: dict[str, Any]) -> str:
    name = str(state["stage"]).replace("_", " ")
    return f"{name}, paused" if state.get("paused") else name


def _words(field: str) -> Any:
    return lambda row: row[field] and str(row[field]).replace("_", " ")


def _improvement(tick: dict[str, Any]) -> str | None:
    if tick["estimate"] is None:
        return None
    return f"{tick['estimate']:+.5f} (from {tick['lower']:+.5f} to {tick['upper']:+.5f})"


_ROLLOUTS = (
    Column("rollout", "rollout"),
    Column("version", _versions),
    Column("against", "champion"),
    Column("stage", _stage),
    Column("started", "started_at"),
    Column("ended", "ended_at"),
    Column("decided by", _words("rule")),
    Column("why", "reason", text=True),
)
_STATE = (
    Column("rollout", "rollout"),
    Column("version", _versions),
    Column("against", "champion"),
    Column("stage", _stage),
    Column("started", "started_at"),
    Column("in this stage since", "stage_since"),
    Column("canary since", "canary_since", wide=True),
    Column("labels judged", "judged_labels"),
    Column("why", "reason", text=True),
    Column("policy", "policy", wide=True),
)
_TICK = (
    Column("model", "model"),
    Column("rollout", "rollout"),
    Column("version", "challenger"),
    Column("stage", _words("stage")),
    Column("action", _words("action")),
    Column("decided by", _words("rule")),
    Column("why", "text", text=True),
    Column("labels", "labels"),
    Column("improvement in loss", _improvement),
    Column("entry", "entry"),
)
