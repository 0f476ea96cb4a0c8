"""Functions from the command line: `python -m toque.functions run NAME --json '{…}'`.

Results go to standard output as one JSON value; errors to standard error, as a JSON object with the member
`error`. Outside a terminal, each is a single line, the last. Exit codes: 0 success; 1 the function failed, or
there is no function or invocation of that name; 2 the command line was wrong (arguments that do not fit, a
key used otherwise); 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TextIO, get_args

from pydantic import BaseModel

from toque.clusters.did_you_mean import did_you_mean
from toque.clusters.profile import apply_profile
from toque.functions.runtime import catalog
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.invocation import Invocation, executor_of, ledger_of
from toque.functions.runtime.durable.record import Record, Status
from toque.functions.runtime.durable.values import get_value
from toque.functions.runtime.errors import (
    InvalidArguments,
    KeyConflict,
    UnknownFunction,
    UnknownInvocation,
)
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.log import Tail

FOLLOW_S = 0.5
POLL_S = 0.1
WRONG_REQUEST = (InvalidArguments, KeyConflict, json.JSONDecodeError)
_COMPARED_IDS = 200  # how many of the newest invocations an unknown ID is compared with


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line; returns its exit code."""
    args = _parser().parse_args(arguments)
    try:
        apply_profile(os.environ)
        _declare(args.module)
        args.command(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # whatever a function raises ends as a message and an exit code
        return _report_error(error, args)
    return 0


def _report_error(error: Exception, args: argparse.Namespace) -> int:
    code = 2 if isinstance(error, WRONG_REQUEST) else 1
    problem = {"type": type(error).__name__, "message": _message(error, args), "exit_code": code}
    sys.stderr.write(_json({"error": problem}, sys.stderr) + "\n")
    return code


def _message(error: Exception, args: argparse.Namespace) -> str:
    """Return the error's message; for an unknown name, with the known name that is closest."""
    name: str = getattr(args, "id", "") or getattr(args, "name", "")
    functions = [each.name for each in catalog.all_functions()]
    if isinstance(error, json.JSONDecodeError):
        return f"--json cannot be read: {error}"
    if isinstance(error, UnknownFunction) and name not in functions:
        return (
            f"there is no function {name!r}; {did_you_mean(name, functions)}`python -m toque.functions list` lists them, --module and "
            "TOQUE_PROJECT import more"
        )
    if isinstance(error, UnknownInvocation) and name not in functions:
        store, newest = context().store, ledger_of(context()).invocations(limit=_COMPARED_IDS)
        known = [*(each.id for each in newest), *functions]
        return (
            f"there is no invocation {name!r} in {store.url}; {did_you_mean(name, known)}`python -m toque.functions invocations` "
            "lists them"
        )
    return str(error)


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are JSON objects, as all errors here."""

    def error(self, message: str) -> NoReturn:
        problem = {"type": "UsageError", "message": f"{message}; see {self.prog} --help", "exit_code": 2}
        self.exit(2, _json({"error": problem}, sys.stderr) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m toque.functions", description=__doc__)
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="NAME",
        help="module that declares functions; repeatable",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_calls(commands)
    _command(commands, "list", _list, "list all declared functions")
    showing = _command(commands, "show", _show, "show a function or an invocation, in full")
    showing.add_argument("name", help="name of the function, or ID of the invocation")
    listing = _command(commands, "invocations", _invocations, "list durable invocations, the newest first")
    listing.add_argument("--status", choices=get_args(Status), help="only invocations with this status")
    listing.add_argument(
        "--limit", type=_count, default=100, metavar="N", help="how many at most (default: 100)"
    )
    _add_changes(commands)
    logs = _command(commands, "logs", _logs, "show what an invocation printed and logged")
    logs.add_argument("id", help=_ID)
    logs.add_argument(
        "-f", "--follow", action="store_true", help="follow the log until the invocation has ended"
    )
    work = _command(
        commands, "work", _work, "run submitted invocations, with the code of this process, until stopped"
    )
    work.add_argument("--until-idle", action="store_true", help="end when no invocation is open any more")
    _command(commands, "costs", _costs, "sum the receipts by function, day and caller")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


_ID = "ID of the invocation, as `invocations` shows it"


def _add_calls(commands: Any) -> None:
    run = _command(
        commands, "run", _run, "run a function here, or on the cluster of a Ray job, and print its result"
    )
    submit = _command(commands, "submit", _submit, "record a durable invocation and print its ID")
    for each in (run, submit):
        each.add_argument("name", help="name of the function, as `list` shows it")
        each.add_argument(
            "--json", default="{}", metavar="JSON", help="its arguments, a JSON object (default: {})"
        )
    submit.add_argument("--key", help="idempotency key: the same key gives the same invocation")
    submit.add_argument("--wait", action="store_true", help="wait and print the result instead")


def _add_changes(commands: Any) -> None:
    for name, command, help_text in (
        ("cancel", _cancel, "end an invocation"),
        ("redrive", _redrive, "queue a dead or cancelled invocation again"),
        ("purge", _purge, "remove an invocation from the dead letters"),
    ):
        _command(commands, name, command, help_text).add_argument("id", help=_ID)
    signal = _command(
        commands, "signal", _signal, "send a waiting invocation its signal, for example an approval"
    )
    signal.add_argument("id", help=_ID)
    signal.add_argument("name", help="name of the signal that the invocation waits for")
    signal.add_argument("--json", default="true", metavar="JSON", help="the signal's value (default: true)")


def _command(commands: Any, name: str, command: Callable[[argparse.Namespace], None], help_text: str) -> Any:
    parser = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    parser.set_defaults(command=command)
    return parser


def _declare(modules: Iterable[str]) -> None:
    catalog.discover((*catalog.PLATFORM, *modules), project=context().project)


def _run(args: argparse.Namespace) -> None:
    function, arguments = catalog.get(args.name), _object(args.json)
    if not cluster.in_job():
        _print(function.call_json(arguments))
        return
    with cluster.connected():  # ends before the result is printed, so that no worker's output comes after it
        result = function.signature.dump_result(function.remote_json(arguments).result())
    _print(result)


def _submit(args: argparse.Namespace) -> None:
    function = catalog.get(args.name)
    invocation: Invocation[Any] = function.submit_json(_object(args.json), key=args.key)
    _print(function.signature.dump_result(invocation.result()) if args.wait else invocation.id)


def _list(_: argparse.Namespace) -> None:
    _print([{"name": each.name, "doc": each.doc.partition("\n")[0]} for each in catalog.all_functions()])


def _show(args: argparse.Namespace) -> None:
    function = catalog.find(args.name)
    if function is None:
        _print(_described(ledger_of(context()).read(args.name)))
        return
    schemas = {"input_schema": function.input_schema, "output_schema": function.output_schema}
    _print(
        {
            "name": function.name,
            "reference": function.reference,
            "doc": function.doc,
            "digest": function.digest,
        }
        | schemas
    )


def _invocations(args: argparse.Namespace) -> None:
    found = ledger_of(context()).invocations(status=args.status, limit=args.limit)
    shown = {"id", "function", "status", "caller", "submitted_at", "attempts"}
    _print([each.model_dump(mode="json", include=shown) for each in found])


def _cancel(args: argparse.Namespace) -> None:
    _print(ledger_of(context()).cancel(args.id).status)


def _redrive(args: argparse.Namespace) -> None:
    _print(ledger_of(context()).redrive(args.id).status)


def _signal(args: argparse.Namespace) -> None:
    _print(ledger_of(context()).signal(args.id, args.name, json.loads(args.json)).status)


def _purge(args: argparse.Namespace) -> None:
    ledger_of(context()).purge(args.id)
    _print("purged")


def _work(args: argparse.Namespace) -> None:
    executor = executor_of(context())
    while executor.poll() or not args.until_idle:
        time.sleep(POLL_S)


def _costs(_: argparse.Namespace) -> None:
    _print([each.model_dump(mode="json") for each in ledger_of(context()).costs()])


def _logs(args: argparse.Namespace) -> None:
    invocation = Invocation.of(args.id)
    tail = Tail(lambda after: list(invocation.log(after=after)))
    while True:
        ended = invocation.record().ended  # read before the log, which is then complete
        for line in tail.new_lines():
            sys.stdout.write(f"{line.text}\n")
        sys.stdout.flush()
        if ended or not args.follow:
            return
        time.sleep(FOLLOW_S)


def _described(record: Record) -> dict[str, Any]:
    store = context().store
    described: dict[str, Any] = record.model_dump(mode="json", exclude={"steps"})
    described["steps"] = [each.function for each in record.steps]
    described["arguments"] = get_value(store, record.arguments)
    return described | ({"result": get_value(store, record.result)} if record.result else {})


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise InvalidArguments(f"--json holds a {type(value).__name__}; give an object of arguments by name")
    return value


def _print(value: Any) -> None:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(_json(plain, sys.stdout) + "\n")


def _json(value: Any, out: TextIO) -> str:
    return json.dumps(value, indent=2 if out.isatty() else None, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
