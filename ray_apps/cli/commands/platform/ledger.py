"""`toque logs`, `toque queue` and `toque costs`: what an invocation printed, which ones wait, and what all of them cost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

from toque.ray_apps.cli.arguments import INVOCATION, arg, flag, limit
from toque.ray_apps.cli.client import Client, call
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.commands.platform.calls import exit_code, follow
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import Column, chosen, columns, listing, newest_first, say

# toque.functions.runtime would bring Ray, two seconds; its segments of a log are plain JSON, and so are its receipts.

POLL_S = 0.5
_OVERLAP_MS = 10_000  # as the runtime's own reader: another process may name its segment by an earlier moment

_FOLLOW = flag("-f --follow", "go on until it has ended; exit code 1 unless it succeeded")
_TIMES = flag("--times", "put time, function and source before each line")
_CPU = arg("--cpu-hour PRICE", "price of a CPU for an hour (default: TOQUE_PRICES)", type=float)
_GPU = arg("--gpu-hour PRICE", "price of a GPU for an hour (default: TOQUE_PRICES)", type=float)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "logs", _logs, INVOCATION, _FOLLOW, _TIMES)
    add(commands, "queue", _queue, limit(100))
    add(commands, "costs", _costs, _CPU, _GPU, limit(100))


def _logs(given: Given) -> int:
    """Show what an invocation printed and logged."""
    given.client.get(f"/invocations/{given.invocation}")  # one that is unknown has no log either
    lines = _Lines(given.client, given.invocation)
    if not given.follow:
        _print(given, lines)
        return 0
    # The state is asked for before each reading: once it has ended, all it printed is there to read.
    ended = follow(given.client, given.invocation, POLL_S, each_time=lambda: _print(given, lines))
    return exit_code(ended)


class _Lines:
    """Follows what an invocation prints, giving each line once."""

    def __init__(self, client: Client, invocation: str) -> None:
        self._client = client
        self._path = f"/invocations/{invocation}/logs"
        self._seen: set[str] = set()
        self._newest_ms = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The lines that were not there the last time.

        Reading begins a little before the newest segment: another process may name its own by an earlier moment.
        """
        after = f"{max(0, self._newest_ms - _OVERLAP_MS):013d}"
        while segments := self._client.get(self._path, after=after):
            for each in segments:
                if each["name"] not in self._seen:
                    self._seen.add(each["name"])
                    yield from each["lines"]
            after = segments[-1]["name"]
            self._newest_ms = int(after.partition("-")[0])


def _print(given: Given, lines: _Lines) -> None:
    how = chosen(given.output)
    for line in lines.new():
        if how == "json":  # one object a line: a log has no end to close a list at
            say(json.dumps(line, ensure_ascii=False))
        else:
            stamp = f"{line['at']} {line['function']} {line['source']}: "
            say(f"{stamp if given.times or how == 'wide' else ''}{line['text']}")


def _queue(given: Given) -> None:
    """List the experiments that run, and those that wait, each with what for."""
    rows = call(given.client, "admissions", {})
    shown = [
        each | {"waits_for": each["waits_for"] or ("yields" if each["yields"] else "runs")} for each in rows
    ]
    listing(given.output, _QUEUE, shown, empty="no experiment runs or waits", limit=given.limit)


def _costs(given: Given) -> None:
    """Sum the receipts by function, day and caller, the newest day first; store requests of the platform too."""
    prices = _prices(given)
    found = newest_first(given.client.get("/costs"), "day")
    rows = [each | {"money": _money(each, prices)} for each in found]
    priced, empty = (*_COSTS, Column(str(prices["currency"]), "money")), "no invocation has ended yet"
    listing(given.output, priced, rows, empty=empty, limit=given.limit, total=_total(rows))


def _prices(given: Given) -> dict[str, Any]:
    """Prices of TOQUE_PRICES, those of the command line before them. Raises: UsageError if they cannot be read."""
    text = os.environ.get("TOQUE_PRICES") or '{"currency": "money", "cpu_hour": 0, "gpu_hour": 0}'
    try:
        known = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"TOQUE_PRICES is not JSON: {text!r}: {error}; {_EXAMPLE}") from error
    if not isinstance(known, dict) or not isinstance(known.get("currency"), str):
        raise UsageError(f"TOQUE_PRICES={text} names no currency; {_EXAMPLE}")
    options = {name: getattr(given, name) for name in ("cpu_hour", "gpu_hour")}
    prices = known | {name: price for name, price in options.items() if price is not None}
    asked = ("cpu_hour", "gpu_hour", *(name for name in _OPTIONAL if prices.get(name) is not None))
    for name in asked:
        price = prices.get(name)
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0 <= price < math.inf:
            shown = json.dumps(price) if name in prices else "missing"
            raise UsageError(f"{name} is {shown}, not a price of 0 or more; {_EXAMPLE}")
    return prices


_OPTIONAL = ("store_reads_1000", "store_writes_1000")
_EXAMPLE = 'write TOQUE_PRICES=\'{"currency": "EUR", "cpu_hour": 0.04, "gpu_hour": 2}\''


def _money(row: dict[str, Any], prices: dict[str, Any]) -> float:
    reads, writes = (prices.get(name) or 0.0 for name in _OPTIONAL)
    requests = row["store_reads"] * reads + row["store_writes"] * writes
    return float(
        (row["cpu_s"] * prices["cpu_hour"] + row["gpu_s"] * prices["gpu_hour"]) / 3600 + requests / 1000
    )


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row: everything together, rows that are not shown included."""
    names = {"function": "all", "day": None, "caller": None, "model": None}
    summed = (
        "invocations", "attempts", "queue_s", "run_s", "cpu_s", "gpu_s", "store_reads", "store_writes", "money",
    )  # fmt: skip
    return names | {each: sum(row[each] for row in rows) for each in summed}


_QUEUE = columns(
    "invocation | function | team | GPUs: gpus | CPUs: cpus | priority | submitted: since | waits for: waits_for",
    wide="caller | workers | card | preemptible | started: started_at | preemptions",
)
_COSTS = columns(
    "function | day | caller | runs: invocations | queue s: queue_s | run s: run_s | CPU s: cpu_s | GPU s: gpu_s | "
    "reads: store_reads | writes: store_writes",
    wide="attempts | model",
)
