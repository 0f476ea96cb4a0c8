"""`toque rollout` and `toque drift`: what the inspector found and what became of challengers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_apps.cli.calls import call
from ray_apps.cli.client import client_of
from ray_apps.cli.command import add, group
from ray_apps.cli.show import value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands."""
    rollout = group(commands, "rollout", "rollouts: status, start, tick, pause, resume, end")
    add(rollout, "status", _status, "the open rollout and how the last ones ended").add_argument("model")
    add(rollout, "tick", _tick, "look at the open rollout now").add_argument("model")
    start = add(rollout, "start", _start, "roll a version out, first as a shadow")
    start.add_argument("model")
    start.add_argument("version", type=int)
    start.add_argument("--reason", default="")
    for name, run, text in (
        ("pause", _pause, "stop advancing; guardrails go on"),
        ("resume", _resume, "go on after a pause"),
    ):
        changing = add(rollout, name, run, text)
        changing.add_argument("model")
        changing.add_argument("--reason", required=True)
    end = add(rollout, "end", _end, "end it by hand")
    end.add_argument("model")
    end.add_argument("action", choices=["promote", "roll_back", "inconclusive"])
    end.add_argument("--reason", required=True)
    drift = add(
        commands, "drift", _drift, "compare the present window of a model's inputs with its training set"
    )
    drift.add_argument("model")


def _status(given: argparse.Namespace) -> int:
    return _call(given, "rollout_status")


def _tick(given: argparse.Namespace) -> int:
    return _call(given, "tick_rollout")


def _start(given: argparse.Namespace) -> int:
    return _call(given, "start_rollout", version=given.version, reason=given.reason)


def _pause(given: argparse.Namespace) -> int:
    return _call(given, "pause_rollout", reason=given.reason)


def _resume(given: argparse.Namespace) -> int:
    return _call(given, "resume_rollout", reason=given.reason)


def _end(given: argparse.Namespace) -> int:
    return _call(given, "end_rollout", action=given.action, reason=given.reason)


def _drift(given: argparse.Namespace) -> int:
    return _call(given, "watch_drift")


def _call(given: argparse.Namespace, function: str, **arguments: object) -> int:
    value(call(client_of(given), function, {"model": given.model, **arguments}))
    return 0
