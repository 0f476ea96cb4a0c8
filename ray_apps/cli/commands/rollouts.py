"""`toque rollout`: plan, start, follow and end the rollout of a version.

`status -f` shows it as it goes on: tables at a terminal, and a line for each change in a pipe.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from time import sleep
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import (
    MODEL,
    Commands,
    Given,
    add,
    flag,
    group,
    limit,
)
from toque.ray_apps.cli.client import Client, call
from toque.ray_apps.cli.errors import INTERRUPTED
from toque.ray_apps.cli.names import ask, require_model
from toque.ray_apps.cli.output import (
    Format,
    chosen,
    columns,
    laid_out,
    listing,
    say,
    see_page,
    value,
    wrapped,
)

if TYPE_CHECKING:
    from rich.console import Console


POLL_S = 2.0

_FOLLOW = flag(
    "-f --follow --watch", "show the newest one until it has ended; exit code 1 unless it was promoted"
)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    rollout = group(commands, "rollout", "Plan, start, follow, pause, promote and end rollouts of versions.")
    add(rollout, "status", _status, MODEL, _FOLLOW, limit())


def _status(given: Given) -> int:
    """Show the rollouts of a model, the newest first."""
    if given.follow:
        require_model(given)
        return follow(given.client, given.model, output=given.output)
    history = ask(given, "rollout_status")
    if chosen(given.output) == "json":
        value(history | {"outcomes": history["outcomes"][-given.limit :]})
    else:
        empty = f"{given.model} has never had a rollout"
        listing(given.output, _ROLLOUTS, _rows(history), empty=empty, limit=given.limit)
    see_page(given.output, given.client.page("rollouts", given.model))
    return 0


def _rows(history: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each rollout that is remembered, the newest first; it may be the open one."""
    current = history["current"]
    ended = {each["rollout"]: each for each in history["outcomes"]}
    rows = [each | {"reason": each["note"]} for each in ended.values()]
    if current is not None and current["rollout"] not in ended:
        rows.append(current)
    return sorted(rows, key=lambda row: int(row["rollout"]), reverse=True)


def _stage(state: dict[str, Any]) -> str:
    name = str(state["stage"]).replace("_", " ")
    return f"{name}, paused" if state.get("paused") else name


def follow(
    client: Client, model: str, *, output: Format | None = None, console: Console | None = None
) -> int:
    """Show the newest rollout until it has ended; 0 if it was promoted, 1 if not, 130 on Ctrl-C.

    console: where the tables are drawn; None: standard output, if that is a terminal and no other format was asked for.
    Raises: Refused if there never was one.
    """
    drawn = console is not None or (sys.stdout.isatty() and output in {None, "table", "wide"})
    looks = _looks(client, model)
    try:
        last = deque(_drawn(looks, console) if drawn else _printed(looks, output), maxlen=1)[0]
    except KeyboardInterrupt:
        return INTERRUPTED
    return int(last["stage"] != "promoted")


def _printed(looks: Iterator[dict[str, Any]], output: Format | None) -> Iterator[dict[str, Any]]:
    """Print each look that is not like the one before, a line each."""
    said = ""
    for look in looks:
        if line(look) != said:
            said = line(look)
            say(json.dumps(look) if output == "json" else f"{look['at'][:16]}Z {said}")
            sys.stdout.flush()  # whoever reads a pipe follows, too
        yield look


def _drawn(looks: Iterator[dict[str, Any]], console: Console | None) -> Iterator[dict[str, Any]]:
    """Draw each look in the place of the one before; the last but one stays beside the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    screen = console or Console(highlight=False)
    with Live(console=screen, auto_refresh=False) as live:
        lines: list[str] = []
        for look in looks:
            lines = view(look, screen.width) if look["is_open"] else [*lines, *view(look, screen.width)]
            live.update(Text.from_ansi("\n".join(lines), no_wrap=True), refresh=True)
            yield look


def view(look: dict[str, Any], width: int) -> list[str]:
    """The lines of one look: samples of each arm, effects, what every rule finds, what comes next."""
    if not look["is_open"]:
        return [*wrapped(_title(look), width), *wrapped(look["text"], width)]
    lines = wrapped(_title(look), width)
    for shown, rows in ((_ARMS, look["arms"]), (_EFFECTS, look["effects"]), (_RULES, look["findings"])):
        lines += laid_out(shown, [[each.of(row) for each in shown] for row in rows], width=width)
    now = f"now: {look['action']} by {look['rule']}"
    return [*lines, *wrapped(now, width), *wrapped(f"next: {look['next']}", width)]


def line(look: dict[str, Any]) -> str:
    """One look in a line, but for its time."""
    if not look["is_open"]:
        return f"{_title(look)}: {look['text']}"
    arms = ", ".join(f"{arm['arm']} {arm['answers']} answers {arm['errors']} errors" for arm in look["arms"])
    effects = "; ".join(
        f"version {each['version']}: {each['labels']} labels, improvement {effect(each)}"
        for each in look["effects"]
    )
    return f"{_title(look)}: {arms}; {effects}; {look['action']} by {look['rule']}"


def _looks(client: Client, model: str) -> Iterator[dict[str, Any]]:
    """Look again and again, until the rollout has ended."""
    while True:
        look: dict[str, Any] = call(client, "look_at_rollout", {"model": model})
        yield look
        if not look["is_open"]:
            return
        sleep(POLL_S)


def _title(look: dict[str, Any]) -> str:
    versions = ", ".join(map(str, look["challengers"]))
    paused = ", paused" if look["paused"] and look["is_open"] else ""
    reach = "" if look["reach"] == 1 else f", on {look['reach']:.2%} of the units"
    return (
        f"{look['model']}: rollout {look['rollout']}, version {versions} against {look['champion']}, {look['stage']} "
        f"since {look['since'][:16].replace('T', ' ')}{paused}{reach if look['is_open'] else ''}"
    )


def effect(each: dict[str, Any]) -> str:
    """An improvement in loss with its interval, in words."""
    if each["estimate"] is None:
        return "not judged yet"
    return f"{each['estimate']:+.5f} (from {each['lower']:+.5f} to {each['upper']:+.5f})"


_ROLLOUTS = columns(
    "rollout | version | against: champion | stage | started: started_at | ended: ended_at? | decided by: rule? as words | why: reason",
    texts="why",
    values={  # the challengers that are still judged, the front-runner first
        "version": lambda state: [state["challenger"], *state.get("rivals", [])],
        "stage": _stage,
    },
)
_ARMS = columns(
    "arm | version | share: share as {:.2%} | answers | errors | slow | units",
)
_EFFECTS = columns(
    "version | paired labels: labels | improvement in loss", values={"improvement in loss": effect}
)
_RULES = columns(
    "rule | fired | finds: text",
    texts="finds",
    values={"rule": lambda row: row["rule"] if row["arm"] is None else f"{row['rule']} ({row['arm']})"},
)
