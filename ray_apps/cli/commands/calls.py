"""`toque functions`, `run`, `submit` and `invocations`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import UsageError, add, find_project_here, group
from ray_apps.cli.commands.ledger import ENDED, progress_bar
from ray_apps.cli.output import complain, say, table, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

POLL_S = 0.2


def register(commands: Commands) -> None:
    """Add the commands."""
    add(commands, "functions", _functions, "list the functions there are")
    running = add(commands, "run", _run, "call a function and print its result")
    _arguments(running)
    running.add_argument("--here", action="store_true", help="run it in this process, without a platform")
    running.add_argument("--key", help="idempotency key: the same key gives the same answer")
    submitting = add(commands, "submit", _submit, "record a durable invocation and print its id")
    _arguments(submitting)
    submitting.add_argument("--key", help="idempotency key: the same key gives the same invocation")
    submitting.add_argument("--wait", action="store_true", help="wait for the result and print it")
    actions = group(
        commands, "invocations", "durable invocations: list, show, cancel, redrive, purge, signal"
    )
    listing = add(actions, "list", _list, "list invocations")
    signalling = add(actions, "signal", _signal, "give a waiting one its signal: an approval, say")
    signalling.add_argument("id")
    signalling.add_argument("name", help="of the signal")
    signalling.add_argument("--json", default="true", help="its value (default: true)")
    listing.add_argument("--state", help="only these, as in dead")
    for name, run, text in (
        ("show", _show, "show one with its result or error"),
        ("cancel", _cancel, "end one that has not ended"),
        ("redrive", _redrive, "queue a dead one again"),
        ("purge", _purge, "take one out of the dead letters"),
    ):
        add(actions, name, run, text).add_argument("id")


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
        raise UsageError(f"this is not JSON: {error}") from error


def call(client: Client, name: str, arguments: Any) -> Any:
    """The result of a function, run by the platform."""
    return client.send("POST", f"/functions/{name}", body=arguments).json()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the function")
    parser.add_argument("--json", default="{}", help="its arguments, a JSON object, @file or - (default: {})")


def _functions(given: argparse.Namespace) -> int:
    found = client_of(given).get("/functions")
    rows = [(each["name"], each["doc"].splitlines()[0] if each["doc"] else "") for each in found]
    table(("function", "what it does"), rows)
    return 0


def _run(given: argparse.Namespace) -> int:
    if given.here:
        from functions.__main__ import main  # late: it imports every function

        find_project_here()
        return main(["run", given.name, "--json", json.dumps(read_json(given.json))])
    headers = {"Idempotency-Key": given.key} if given.key else None
    arguments = read_json(given.json)
    answer = client_of(given).send("POST", f"/functions/{given.name}", body=arguments, headers=headers)
    value(answer.json())
    return 0


def _submit(given: argparse.Namespace) -> int:
    client = client_of(given)
    headers = {"Prefer": "respond-async"} | ({"Idempotency-Key": given.key} if given.key else {})
    arguments = read_json(given.json)
    accepted = client.send("POST", f"/functions/{given.name}", body=arguments, headers=headers).json()
    if not given.wait:
        say(accepted["id"])
        return 0
    return _report(_ended(client, accepted["id"]))


def _ended(client: Client, invocation: str) -> dict[str, Any]:
    with progress_bar() as show:
        while True:
            told: dict[str, Any] = client.get(f"/invocations/{invocation}")
            show(told)
            if told["status"] in ENDED:
                return told
            time.sleep(POLL_S)


def _report(told: dict[str, Any]) -> int:
    if told["status"] == "succeeded":
        value(told["result"])
        return 0
    failure = told["failure"] or {"type": told["status"], "message": told["id"]}
    complain(f"{failure['type']}: {failure['message']}")
    return 1


def _list(given: argparse.Namespace) -> int:
    found = client_of(given).get("/invocations", state=given.state)
    rows = [
        (each["id"], each["function"], each["status"], each["attempts"], each["caller"], each["submitted_at"])
        for each in found
    ]
    table(("id", "function", "status", "attempts", "caller", "submitted"), rows)
    return 0


def _show(given: argparse.Namespace) -> int:
    value(client_of(given).get(f"/invocations/{given.id}"))
    return 0


def _cancel(given: argparse.Namespace) -> int:
    say(client_of(given).send("DELETE", f"/invocations/{given.id}").json()["status"])
    return 0


def _purge(given: argparse.Namespace) -> int:
    client_of(given).send("POST", f"/invocations/{given.id}/purge")
    say("purged")
    return 0


def _signal(given: argparse.Namespace) -> int:
    path = f"/invocations/{given.id}/signals/{given.name}"
    say(client_of(given).send("POST", path, body=read_json(given.json)).json()["status"])
    return 0


def _redrive(given: argparse.Namespace) -> int:
    say(client_of(given).send("POST", f"/invocations/{given.id}/redrive").json()["status"])
    return 0
