"""`toque functions`, `run`, `submit`, `invocations`, `logs`, `queue` and `costs`: calls, and what became of them.

toque.functions.runtime would bring Ray, two seconds; its segments of a log are plain JSON, and so are its receipts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from toque.ray_apps.cli.arguments import (
    INVOCATION,
    Commands,
    Given,
    add,
    arg,
    find_project_here,
    flag,
    group,
    limit,
    read_json,
)
from toque.ray_apps.cli.client import Client
from toque.ray_apps.cli.declared import flags_help, parse_flags
from toque.ray_apps.cli.errors import Failed, Unreachable, UsageError
from toque.ray_apps.cli.output import (
    Column,
    chosen,
    columns,
    complain,
    facts_and_table,
    listing,
    message,
    newest_first,
    note,
    say,
    value,
)
from toque.ray_apps.cli.transfer import invocation_bar
from toque.ray_apps.function_schemas import parameters, type_name

POLL_S = 0.2
FOLLOW_S = 0.5
ENDED = frozenset({"succeeded", "dead", "cancelled"})
_OVERLAP_MS = 10_000  # as the runtime's own reader: another process may name its segment by an earlier moment
_STORE_PRICES = ("store_reads_1000", "store_writes_1000")
_PRICES_EXAMPLE = 'write TOQUE_PRICES=\'{"currency": "EUR", "cpu_hour": 0.04, "gpu_hour": 2}\''

_FUNCTION = arg("function name", "name of the function, as `toque functions` shows it")
_FULLY = arg("function name", "function to show in full (default: list all)", nargs="?")
_ARGUMENTS = arg(
    "--json JSON",
    "its arguments: a JSON object, @file or -; each may be a flag instead, as in --model flights (default: {})",
    default="{}",
)
_HERE = flag("--here", "run it in this process, without a platform")
_RUN_KEY = arg("--key", "idempotency key: the same key gives the same answer")
_SUBMIT_KEY = arg("--key", "idempotency key: the same key gives the same invocation")
_WAIT = flag("--wait", "wait for the result and print it")
_SIGNAL = arg("name", "name of the signal that it waits for")
_VALUE = arg("--json JSON", "the signal's value (default: true)", default="true")
_FOLLOW = flag("-f --follow", "go on until it has ended; exit code 1 unless it succeeded")
_TIMES = flag("--times", "put time, function and source before each line")
_CPU = arg("--cpu-hour PRICE", "price of a CPU for an hour (default: TOQUE_PRICES)", type=float)
_GPU = arg("--gpu-hour PRICE", "price of a GPU for an hour (default: TOQUE_PRICES)", type=float)


def register(commands: Commands) -> None:
    """Add the commands that call functions and steer invocations."""
    add(commands, "functions", _functions, _FULLY, limit(None))
    help_of_function = arg(
        "-h --help", "show this, or after a function's name its arguments", action=_ShowHelp, nargs=0
    )
    for word, run, *own in (("run", _run, _HERE, _RUN_KEY), ("submit", _submit, _SUBMIT_KEY, _WAIT)):
        taken = (_FUNCTION, _ARGUMENTS, *own)
        add(commands, word, run, *taken, json_option=False, help_option=help_of_function)
        commands.choices[word].set_defaults(takes_flags=True, here=False, wants_help=None)
    actions = group(
        commands,
        "invocations",
        "List, show, cancel, redrive, purge and signal durable invocations; their logs, queue and costs.",
    )
    add(actions, "signal", _signal, INVOCATION, _SIGNAL, _VALUE, json_option=False)
    add(actions, "logs", _logs, INVOCATION, _FOLLOW, _TIMES)
    add(actions, "costs", _costs, _CPU, _GPU, limit(100))


def _functions(given: Given) -> None:
    """List the functions with their arguments, or show one in full."""
    if given.function is None:
        found = given.client.get("/functions")
        listing(given.output, _LISTED, found, empty="no function is declared", limit=given.limit)
    else:
        found = given.client.get(f"/functions/{given.function}")
        rows = [asdict(each) for each in parameters(found["input_schema"])]
        facts_and_table(given.output, _IN_FULL, found, _PARAMETERS, rows)


class _ShowHelp(argparse.Action):
    """Show a command's help, or have the command show that of the function that it names."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any, **__: Any
    ) -> None:
        if namespace.function is None:
            parser.print_help()
            parser.exit()
        namespace.wants_help = parser


def _run(given: Given) -> int:
    """Call a function and print its result."""
    if given.here:
        find_project_here()
        os.environ |= {"TOQUE_WORKSPACE": given.workspace} if given.workspace else {}
    if given.wants_help:
        return _show_help(given)
    arguments = _arguments(given)
    if given.here:
        from toque.functions.__main__ import main  # late: it imports every function

        return main(["run", given.function, "--json", json.dumps(arguments)])
    value(_post(given, arguments))
    return 0


def _submit(given: Given) -> int:
    """Record a durable invocation and print its ID."""
    if given.wants_help:
        return _show_help(given)
    accepted = _post(given, _arguments(given), Prefer="respond-async")
    if not given.wait:
        message(given.output, accepted["id"], accepted)
        return 0
    invocation = follow(given.client, accepted["id"], POLL_S)
    if invocation["status"] == "succeeded":
        value(invocation["result"])
    return exit_code(invocation)


def _arguments(given: Given) -> Any:
    """The arguments of the function: the JSON object, and what flags say."""
    arguments = read_json(given.json)
    if not given.passed:
        return arguments
    if not isinstance(arguments, dict):
        raise UsageError(
            f'--json holds {json.dumps(arguments)[:80]}; give an object of arguments by name, as in {{"model": "flights"}}'
        )
    return arguments | parse_flags(given.function, _described(given)["input_schema"], given.passed)


def _described(given: Given) -> dict[str, Any]:
    """What the platform says of the function, or this process with --here. Raises: Refused; Unreachable; Failed."""
    if not given.here:
        described: dict[str, Any] = given.client.get(f"/functions/{given.function}")
        return described
    from toque.functions.runtime import catalog  # late, as above
    from toque.functions.runtime.context import context
    from toque.functions.runtime.errors import UnknownFunction

    catalog.discover(project=context().project)
    try:
        function = catalog.get(given.function)
    except UnknownFunction as error:
        raise Failed(str(error)) from error
    return {"input_schema": function.input_schema, "doc": function.doc}


def _show_help(given: Given) -> int:
    """Show the arguments of a function as flags; where no platform can be asked, the help of the command."""
    try:
        described = _described(given)
    except Unreachable as error:
        given.wants_help.print_help()
        note(f"the arguments of {given.function} are not known here: {error}")
        return 0
    say(flags_help(given.function, described["input_schema"], _summary(described)).rstrip())
    return 0


def _post(given: Given, arguments: Any, **headers: str) -> Any:
    """The platform's answer to a call of the function."""
    headers |= {"Idempotency-Key": given.key} if given.key else {}
    return given.client.send("POST", f"/functions/{given.function}", body=arguments, headers=headers).json()


def follow(
    client: Client, invocation: str, poll_s: float, *, each_time: Callable[[], None] | None = None
) -> dict[str, Any]:
    """The invocation once it has ended, its progress drawn meanwhile. each_time: called after each look at it."""
    with invocation_bar() as report:
        while True:
            found: dict[str, Any] = client.get(f"/invocations/{invocation}")
            if each_time:
                each_time()
            report(found)
            if found["status"] in ENDED:
                return found
            time.sleep(poll_s)


def exit_code(invocation: dict[str, Any]) -> int:
    """The exit code for an invocation that has ended; why it did not succeed is said on standard error."""
    if invocation["status"] == "succeeded":
        return 0
    failure = invocation["failure"]
    said = f"invocation {invocation['id']} is {invocation['status']}"
    complain(f"{failure['type']}: {failure['message']}" if failure else said)
    return 1


def _signal(given: Given) -> None:
    """Give a waiting one its signal: an approval, say."""
    path = f"/invocations/{given.invocation}/signals/{given.name}"
    changed = given.client.send("POST", path, body=read_json(given.json)).json()
    message(given.output, changed["status"], changed)


def _names(function: dict[str, Any]) -> str:
    """Names of the arguments, those that may be left out in brackets: `model, [days]`."""
    found = parameters(function["input_schema"])
    return ", ".join(each.name if each.required else f"[{each.name}]" for each in found)


def _signature(function: dict[str, Any]) -> str:
    """Arguments as a person writes them: `model: string, days: integer = 28`."""
    return ", ".join(
        f"{each.name}: {each.type}{each.default and ' = '}{each.default}"
        for each in parameters(function["input_schema"])
    )


def _summary(function: dict[str, Any]) -> str:
    """The first line of a function's description, without the errors that are for Python's callers."""
    return str(function["doc"].partition("\n")[0].partition(" Raises:")[0])


def _logs(given: Given) -> int:
    """Show what an invocation printed and logged."""
    given.client.get(f"/invocations/{given.invocation}")  # one that is unknown has no log either
    lines = _Lines(given.client, given.invocation)
    if not given.follow:
        _print(given, lines)
        return 0
    # The state is asked for before each reading: once it has ended, all it printed is there to read.
    ended = follow(given.client, given.invocation, FOLLOW_S, each_time=lambda: _print(given, lines))
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
        raise UsageError(f"TOQUE_PRICES is not JSON: {text!r}: {error}; {_PRICES_EXAMPLE}") from error
    if not isinstance(known, dict) or not isinstance(known.get("currency"), str):
        raise UsageError(f"TOQUE_PRICES={text} names no currency; {_PRICES_EXAMPLE}")
    options = {name: getattr(given, name) for name in ("cpu_hour", "gpu_hour")}
    prices = known | {name: price for name, price in options.items() if price is not None}
    asked = ("cpu_hour", "gpu_hour", *(name for name in _STORE_PRICES if prices.get(name) is not None))
    for name in asked:
        price = prices.get(name)
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0 <= price < math.inf:
            shown = json.dumps(price) if name in prices else "missing"
            raise UsageError(f"{name} is {shown}, not a price of 0 or more; {_PRICES_EXAMPLE}")
    return prices


def _money(row: dict[str, Any], prices: dict[str, Any]) -> float:
    reads, writes = (prices.get(name) or 0.0 for name in _STORE_PRICES)
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


_LISTED = columns(
    "function: name | arguments | what it does",
    wide="signature | schedule: schedules | events | reference",
    texts="arguments | what it does",
    values={"arguments": _names, "what it does": _summary, "signature": _signature},
)
_IN_FULL = columns(
    "function: name | reference | what it does: doc | result | time limit, s: timeout_s | attempts: max_attempts"
    " | CPUs: resources.num_cpus | GPUs: resources.num_gpus | results cached: cache | schedule: schedules | events",
    wide="code digest: digest",
    texts="what it does | result",
    values={"result": lambda row: type_name(row["output_schema"])},
)
_PARAMETERS = columns(
    "argument: name | type | default | meaning: description", texts="type | default | meaning"
)
_COSTS = columns(
    "function | day | caller | runs: invocations | queue s: queue_s | run s: run_s | CPU s: cpu_s | GPU s: gpu_s | "
    "reads: store_reads | writes: store_writes",
    wide="attempts | model",
)
