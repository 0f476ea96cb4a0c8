"""`toque rollout status -f`: a rollout as it goes on, a table at a terminal and a line for each change in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from time import sleep
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ray_apps.cli.client import Client
from ray_apps.cli.command import INTERRUPTED
from ray_apps.cli.commands.calls import call
from ray_apps.cli.output import out, say

POLL_S = 2.0


def follow(client: Client, model: str) -> int:
    """Show the newest rollout until it has ended; 0 if it was promoted, 1 if not, 130 on Ctrl-C.

    Raises: Refused if there never was one.
    """
    last: dict[str, Any] = {}
    try:
        if out.is_terminal:
            # A console of its own: a live table needs lines that end where the terminal's do.
            with Live(console=Console(highlight=False), auto_refresh=False) as live:
                shown: list[RenderableType] = []
                for last in _looks(client, model):
                    shown = [view(last)] if last["is_open"] else [*shown, view(last)]
                    live.update(Group(*shown), refresh=True)
        else:
            for last in _changes(_looks(client, model)):
                say(f"{last['at'][:16]}Z {line(last)}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return int(last["stage"] != "promoted")


def view(seen: dict[str, Any]) -> RenderableType:
    """One look as tables: samples of each arm, effects, what every rule finds, what comes next."""
    title = Text(_title(seen), style="bold")
    if not seen["is_open"]:
        return Group(title, Text(seen["text"]))
    parts: list[RenderableType] = [title, _arms(seen), _effects(seen), _rules(seen)]
    return Group(*parts, Text(f"now:  {seen['action']} by {seen['rule']}"), Text(f"next: {seen['next']}"))


def line(seen: dict[str, Any]) -> str:
    """One look in a line, but for its time."""
    if not seen["is_open"]:
        return f"{_title(seen)}: {seen['text']}"
    arms = ", ".join(f"{arm['arm']} {arm['answers']} answers {arm['errors']} errors" for arm in seen["arms"])
    effects = "; ".join(
        f"version {each['version']}: {each['labels']} labels, improvement {_effect(each)}"
        for each in seen["effects"]
    )
    return f"{_title(seen)}: {arms}; {effects}; {seen['action']} by {seen['rule']}"


def _looks(client: Client, model: str) -> Iterator[dict[str, Any]]:
    """Look again and again, until the rollout has ended."""
    while True:
        seen: dict[str, Any] = call(client, "look_at_rollout", {"model": model})
        yield seen
        if not seen["is_open"]:
            return
        sleep(POLL_S)


def _changes(looks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    said = ""
    for seen in looks:
        if line(seen) != said:
            yield seen
        said = line(seen)


def _title(seen: dict[str, Any]) -> str:
    versions = ", ".join(map(str, seen["challengers"]))
    paused = ", paused" if seen["paused"] and seen["is_open"] else ""
    reach = "" if seen["reach"] == 1 else f", on {seen['reach']:.2%} of the units"
    return (
        f"{seen['model']}: rollout {seen['rollout']}, version {versions} against {seen['champion']}, {seen['stage']} "
        f"since {seen['since'][:16].replace('T', ' ')}{paused}{reach if seen['is_open'] else ''}"
    )


def _arms(seen: dict[str, Any]) -> Table:
    made = _table("arm", "version", "share", "answers", "errors", "slow", "units")
    for arm in seen["arms"]:
        share = "-" if arm["share"] is None else f"{arm['share']:.2%}"
        counted = [f"{arm[name]:,}" for name in ("answers", "errors", "slow")]
        units = "-" if arm["units"] is None else f"{arm['units']:,}"
        made.add_row(arm["arm"], str(arm["version"]), share, *counted, units)
    return made


def _effects(seen: dict[str, Any]) -> Table:
    made = _table("version", "paired labels", "improvement in loss")
    for each in seen["effects"]:
        made.add_row(str(each["version"]), f"{each['labels']:,}", _effect(each))
    return made


def _effect(each: dict[str, Any]) -> str:
    if each["estimate"] is None:
        return "not judged yet"
    return f"{each['estimate']:+.5f} (from {each['lower']:+.5f} to {each['upper']:+.5f})"


def _rules(seen: dict[str, Any]) -> Table:
    made = _table("rule", "", "finds")
    for finding in seen["findings"]:
        rule = finding["rule"] if finding["arm"] is None else f"{finding['rule']} ({finding['arm']})"
        style = "bold" if finding["fired"] else "dim"
        made.add_row(rule, "!" if finding["fired"] else "", Text(finding["text"]), style=style)
    return made


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name, no_wrap=name != "finds")
    return made
