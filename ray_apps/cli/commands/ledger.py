"""`toque logs` and `toque costs`: what an invocation said, and what all of them cost."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import UsageError, add
from ray_apps.cli.output import complain, out, say, table, value

if TYPE_CHECKING:
    from functions.runtime.receipt import Prices
    from functions.runtime.run.log import Line, Tail
    from ray_apps.cli.command import Commands

POLL_S = 0.5
ENDED = frozenset({"succeeded", "dead", "cancelled"})

Bar = Callable[[dict[str, Any]], None]


def register(commands: Commands) -> None:
    """Add the commands."""
    logs = add(commands, "logs", _logs, "show what an invocation printed and logged")
    logs.add_argument("id")
    logs.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="go on until it has ended; exit code 1 unless it succeeded",
    )
    logs.add_argument("--times", action="store_true", help="put time, function and source before each line")
    costs = add(commands, "costs", _costs, "sum the receipts by function, day and caller")
    told = "for an hour (default: TOQUE_PRICES)"
    costs.add_argument("--cpu-hour", type=float, metavar="PRICE", help=f"of a CPU {told}")
    costs.add_argument("--gpu-hour", type=float, metavar="PRICE", help=f"of a GPU {told}")
    costs.add_argument("--json", action="store_true", help="print it as JSON")


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Shows the progress an invocation reports as a bar, at a terminal; in a pipe nothing."""
    if not out.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=1.0, visible=False)

        def show(told: dict[str, Any]) -> None:
            at = told["progress"]
            if at:
                text = at["text"] or told["function"]
                progress.update(task, description=text, completed=at["done"], total=at["total"], visible=True)

        yield show


def _logs(given: argparse.Namespace) -> int:
    from functions.runtime.run.log import Segment, Tail  # late: it brings in Ray

    segments = TypeAdapter(list[Segment])
    client = client_of(given)
    path = f"/invocations/{given.id}"
    tail = Tail(lambda after: segments.validate_python(client.get(f"{path}/logs", after=after)))
    if given.follow:
        return _follow(client, path, tail, times=given.times)
    _print(tail, times=given.times)
    return 0


def _follow(client: Client, path: str, tail: Tail, *, times: bool) -> int:
    with progress_bar() as show:
        while True:
            told = client.get(path)  # asked first: when it has ended, all it said is there to read
            _print(tail, times=times)
            show(told)
            if told["status"] in ENDED:
                break
            time.sleep(POLL_S)
    if told["status"] != "succeeded":
        failure = told["failure"] or {"type": told["status"], "message": told["id"]}
        complain(f"{failure['type']}: {failure['message']}")
    return int(told["status"] != "succeeded")


def _print(tail: Tail, *, times: bool) -> None:
    for line in tail.new_lines():
        say(_stamped(line) if times else line.text)


def _stamped(line: Line) -> str:
    return f"{line.at.isoformat(timespec='milliseconds')} {line.function} {line.source}: {line.text}"


def _costs(given: argparse.Namespace) -> int:
    from functions.runtime.receipt import Total  # late: it brings in Ray

    prices = _prices(given)
    found = TypeAdapter(list[Total]).validate_python(client_of(given).get("/costs"))
    rows = [each.model_dump() | {"money": prices.money(cpu_s=each.cpu_s, gpu_s=each.gpu_s)} for each in found]
    if given.json:
        value(rows)
    else:
        table((*_HEADINGS, prices.currency), [tuple(row.values()) for row in [*rows, _all(rows)]])
    return 0


def _prices(given: argparse.Namespace) -> Prices:
    """Those of TOQUE_PRICES; what the command line says goes first. Raises: UsageError if they cannot be read."""
    from functions.runtime.receipt import Prices  # late: it brings in Ray

    told = os.environ.get("TOQUE_PRICES") or '{"currency": "money", "cpu_hour": 0, "gpu_hour": 0}'
    try:
        known = Prices.model_validate_json(told)
        said = {name: getattr(given, name) for name in ("cpu_hour", "gpu_hour")}
        return Prices.model_validate(
            known.model_dump() | {name: price for name, price in said.items() if price is not None}
        )
    except ValidationError as error:
        raise UsageError(
            f"prices that cannot be read, from TOQUE_PRICES={told} and the options: {error}"
        ) from error


_HEADINGS = ("function", "day", "caller", "runs", "attempts", "queue s", "run s", "CPU s", "GPU s")


def _all(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row: everything together."""
    named = {"function": "all", "day": None, "caller": None}
    summed = ("invocations", "attempts", "queue_s", "run_s", "cpu_s", "gpu_s", "money")
    return named | {each: sum(row[each] for row in rows) for each in summed}
