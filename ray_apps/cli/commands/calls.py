"""`toque functions`, `run`, `submit` and `invocations`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, Refused, client_of
from ray_apps.cli.command import INVOCATION, UsageError, add, add_limit, find_project_here, group
from ray_apps.cli.names import known_function, known_invocation
from ray_apps.cli.output import Column, complain, facts, listing, message, value
from ray_apps.cli.progress import invocation_bar

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

POLL_S = 0.2
ENDED = frozenset({"succeeded", "dead", "cancelled"})
STATES = ("queued", "running", "failed", "waiting", "succeeded", "dead", "cancelled")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    listed = add(
        commands, "functions", _functions, "list the functions with their arguments, or show one in full"
    )
    listed.add_argument("name", nargs="?", help="function to show in full (default: list all)")
    add_limit(listed, default=None)
    running = add(commands, "run", _run, "call a function and print its result", json_option=False)
    _add_arguments(running)
    running.add_argument("--here", action="store_true", help="run it in this process, without a platform")
    running.add_argument("--key", help="idempotency key: the same key gives the same answer")
    submitting = add(
        commands, "submit", _submit, "record a durable invocation and print its ID", json_option=False
    )
    _add_arguments(submitting)
    submitting.add_argument("--key", help="idempotency key: the same key gives the same invocation")
    submitting.add_argument("--wait", action="store_true", help="wait for the result and print it")
    _register_invocations(
        group(commands, "invocations", "list, show, cancel, redrive, purge and signal durable invocations")
    )


def _register_invocations(actions: Commands) -> None:
    listed = add(actions, "list", _list, "list invocations, the newest first")
    listed.add_argument("--state", choices=STATES, help="only those in this state")
    add_limit(listed)
    for name, run, text in (
        ("show", _show, "show one with its arguments, and its result or error"),
        ("cancel", _cancel, "end one that has not ended"),
        ("redrive", _redrive, "queue a dead or cancelled one again"),
        ("purge", _purge, "take one out of the dead letters"),
    ):
        add(actions, name, run, text).add_argument("id", help=INVOCATION)
    signalling = add(
        actions, "signal", _signal, "give a waiting one its signal: an approval, say", json_option=False
    )
    signalling.add_argument("id", help=INVOCATION)
    signalling.add_argument("name", help="name of the signal that it waits for")
    signalling.add_argument(
        "--json", default="true", metavar="JSON", help="the signal's value (default: true)"
    )


def read_json(text: str) -> Any:
    """A JSON value from the command line: itself, `@file`, or `-` for standard input. Raises: UsageError."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except OSError as error:
            raise UsageError(f"cannot read {text[1:]!r}: {error.strerror}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"this is not JSON: {text[:80]!r}: {error}") from error


def call(client: Client, name: str, arguments: Any) -> Any:
    """The result of a function that stands behind a command, run by the platform.

    Raises: Refused with the function's own words: neither it nor the class of its error is a name that a user gave.
    """
    try:
        return client.send("POST", f"/functions/{name}", body=arguments).json()
    except Refused as refused:
        raise Refused(refused.status, re.sub(rf"^{name}: \w+: ", "", str(refused))) from refused


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the function, as `toque functions` shows it")
    parser.add_argument(
        "--json", default="{}", metavar="JSON", help="its arguments: a JSON object, @file or - (default: {})"
    )


def _functions(given: argparse.Namespace) -> int:
    client = client_of(given)
    if given.name is None:
        found = client.get("/functions")
        listing(given.output, _FUNCTIONS, found, empty="no function is declared", limit=given.limit)
        return 0
    with known_function(client, given.name):
        facts(given.output, _FUNCTION, client.get(f"/functions/{given.name}"))
    return 0


def _run(given: argparse.Namespace) -> int:
    if given.here:
        from functions.__main__ import main  # late: it imports every function

        find_project_here()
        return main(["run", given.name, "--json", json.dumps(read_json(given.json))])
    headers = {"Idempotency-Key": given.key} if given.key else None
    arguments, client = read_json(given.json), client_of(given)
    with known_function(client, given.name):
        answer = client.send("POST", f"/functions/{given.name}", body=arguments, headers=headers)
    value(answer.json())
    return 0


def _submit(given: argparse.Namespace) -> int:
    client = client_of(given)
    headers = {"Prefer": "respond-async"} | ({"Idempotency-Key": given.key} if given.key else {})
    arguments = read_json(given.json)
    with known_function(client, given.name):
        accepted = client.send("POST", f"/functions/{given.name}", body=arguments, headers=headers).json()
    if not given.wait:
        message(given.output, accepted["id"], accepted)
        return 0
    return _print_result(_wait(client, accepted["id"]))


def _wait(client: Client, identifier: str) -> dict[str, Any]:
    """The invocation once it has ended, its progress drawn meanwhile."""
    with invocation_bar() as report:
        while True:
            invocation: dict[str, Any] = client.get(f"/invocations/{identifier}")
            report(invocation)
            if invocation["status"] in ENDED:
                return invocation
            time.sleep(POLL_S)


def _print_result(invocation: dict[str, Any]) -> int:
    if invocation["status"] == "succeeded":
        value(invocation["result"])
        return 0
    complain(failure_of(invocation))
    return 1


def failure_of(invocation: dict[str, Any]) -> str:
    """Why an invocation that has ended did not succeed, in a sentence."""
    failure = invocation["failure"]
    if failure is None:
        return f"invocation {invocation['id']} is {invocation['status']}"
    return f"{failure['type']}: {failure['message']}"


def _list(given: argparse.Namespace) -> int:
    found = client_of(given).get("/invocations", state=given.state, limit=given.limit + 1)
    state = f" in the state {given.state}" if given.state else ""
    listing(given.output, _INVOCATIONS, found, empty=f"there is no invocation{state}", limit=given.limit)
    return 0


def _show(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_invocation(client, given.id):
        facts(given.output, _INVOCATION, client.get(f"/invocations/{given.id}"))
    return 0


def _cancel(given: argparse.Namespace) -> int:
    return _change(given, "DELETE", "")


def _redrive(given: argparse.Namespace) -> int:
    return _change(given, "POST", "/redrive")


def _purge(given: argparse.Namespace) -> int:
    return _change(given, "POST", "/purge", text="purged")


def _signal(given: argparse.Namespace) -> int:
    return _change(given, "POST", f"/signals/{given.name}", body=read_json(given.json))


def _change(
    given: argparse.Namespace, method: str, path: str, *, body: Any = None, text: str | None = None
) -> int:
    """Change an invocation, and print the state it is in then."""
    client = client_of(given)
    with known_invocation(client, given.id):
        changed = client.send(method, f"/invocations/{given.id}{path}", body=body).json()
    message(given.output, text or changed["status"], changed)
    return 0


def _arguments(function: dict[str, Any]) -> str:
    """Names of the arguments, those that may be left out in brackets: `model, [days]`."""
    required = function["input_schema"].get("required", [])
    names = function["input_schema"].get("properties", {})
    return ", ".join(name if name in required else f"[{name}]" for name in names)


def _signature(function: dict[str, Any]) -> str:
    """Arguments as a person writes them: `model: string, days: integer = 28`."""
    schema = function["input_schema"]
    required = schema.get("required", [])
    parts = []
    for name, argument in schema.get("properties", {}).items():
        default = "" if name in required else f" = {json.dumps(argument.get('default'), ensure_ascii=False)}"
        parts.append(f"{name}: {_type(argument)}{default}")
    return ", ".join(parts)


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(json.dumps(each) for each in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type", "any value"))


def _summary(function: dict[str, Any]) -> str:
    """The first line of a function's description, without the errors that are for Python's callers."""
    return str(function["doc"].partition("\n")[0].partition(" Raises:")[0])


_FUNCTIONS = (
    Column("function", "name"),
    Column("arguments", _arguments, text=True),
    Column("what it does", _summary, text=True),
    Column("signature", _signature, wide=True),
    Column("schedule", "schedules", wide=True),
    Column("events", "events", wide=True),
    Column("reference", "reference", wide=True),
)
_FUNCTION = (
    Column("function", "name"),
    Column("reference", "reference"),
    Column("what it does", "doc", text=True),
    Column("arguments", _signature, text=True),
    Column("result", lambda row: _type(row["output_schema"]), text=True),
    Column("time limit, s", "timeout_s"),
    Column("attempts", "max_attempts"),
    Column("CPUs", lambda row: row["resources"]["num_cpus"]),
    Column("GPUs", lambda row: row["resources"]["num_gpus"]),
    Column("results cached", "cache"),
    Column("schedule", "schedules"),
    Column("events", "events"),
    Column("code digest", "digest", wide=True),
)
_INVOCATIONS = (
    Column("ID", "id"),
    Column("function", "function"),
    Column("status", "status"),
    Column("submitted", "submitted_at"),
    Column("caller", "caller", wide=True),
    Column("attempts", "attempts", wide=True),
    Column("key", "key", wide=True),
    Column("finished", "finished_at", wide=True),
    Column("arguments", "arguments", text=True, wide=True),
)
_INVOCATION = (
    Column("ID", "id"),
    Column("function", "function"),
    Column("status", "status"),
    Column("caller", "caller"),
    Column("key", "key"),
    Column("arguments", "arguments", text=True),
    Column("submitted", "submitted_at"),
    Column("started", "started_at"),
    Column("finished", "finished_at"),
    Column("due", "due", wide=True),
    Column("attempts", "attempts"),
    Column("workers lost", "lost"),
    Column("steps done", "steps", text=True),
    Column("waits for", "waits_for"),
    Column("progress", "progress", text=True, wide=True),
    Column("error", lambda row: failure_of(row) if row["failure"] else None, text=True),
    Column(
        "result",
        lambda row: json.dumps(row["result"], ensure_ascii=False) if row["status"] == "succeeded" else None,
        text=True,
    ),
    Column("queue, s", lambda row: (row["receipt"] or {}).get("queue_s")),
    Column("run, s", lambda row: (row["receipt"] or {}).get("run_s")),
    Column("CPU, s", lambda row: (row["receipt"] or {}).get("cpu_s")),
    Column("GPU, s", lambda row: (row["receipt"] or {}).get("gpu_s")),
    Column("peak memory, bytes", lambda row: (row["receipt"] or {}).get("peak_memory_bytes"), wide=True),
)
