"""Commands that functions declare: their arguments are the function's, their output is its view.

Those of the platform are in `commands.json` beside this module, so that help takes no import and no network. A function of
a project is found by asking the platform for the words that the command line begins with.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any
from urllib.parse import quote

from toque.ray_apps.cli.arguments import (
    JSON,
    MODEL,
    OUTPUT,
    VERSION,
    Commands,
    Given,
    Parser,
    group,
    limit,
    read_json,
)
from toque.ray_apps.cli.client import Client, call
from toque.ray_apps.cli.errors import Failed
from toque.ray_apps.cli.names import KINDS, require_model
from toque.ray_apps.cli.output import (
    Column,
    columns,
    facts,
    facts_and_table,
    listing,
    message,
    newest_first,
    see_page,
    value,
)
from toque.ray_apps.function_schemas import command_table, options, parameters

TABLE = Path(__file__).with_name("commands.json")
_READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "number or text": str,
    "integer": int,
    "number": float,
    "json": read_json,
    "integer or text": lambda text: int(text) if text.isdecimal() else text,
}
_METAVARS = {
    "integer": "N",
    "number": "X",
    "json": "JSON",
    "integer or text": "VALUE",
    "number or text": "VALUE",
}
_SHOWN: dict[str, str] = {"model": MODEL.options["help"], "version": VERSION.options["help"]}
_SHORT = 60  # characters of a default that help shows
_PREFIX = "argument:"  # a function may have arguments that are called as what the command line itself parses
Table = Mapping[str, Any]


def platform_commands() -> dict[str, list[Table]]:
    """Read what the platform's own functions declare: their tables by the first word of each command."""
    found: dict[str, list[Table]] = {}
    for table in json.loads(TABLE.read_text(encoding="utf-8")):
        for command in table["commands"]:
            found.setdefault(command["words"][0], []).append(table | {"commands": [command]})
    return found


def register(commands: Commands, tables: Iterable[Table]) -> None:
    """Add the commands of some tables, but for those that are there: a function cannot take a word from another."""
    for table in tables:
        for command in table["commands"]:
            *outer, name = command["words"]
            place: Commands | None = commands
            for word in outer:
                if place is not None and word not in place.choices:
                    group(place, word, f"Commands of functions: {word}.")
                place = None if place is None else find_group(place, word)
            if place is not None and name not in place.choices:
                _add(place, name, table, command)


def find_group(commands: Commands, word: str) -> Commands | None:
    """Find the commands that begin with a word; None if the word is a command itself."""
    actions = commands.choices[word]._actions  # noqa: SLF001  # argparse offers no other
    return next((one for one in actions if isinstance(one, argparse._SubParsersAction)), None)  # noqa: SLF001


def _add(place: Commands, name: str, table: Table, command: Mapping[str, Any]) -> None:
    stands = "".join(f" ({argument}: {content})" for argument, content in command["fixed"])
    summary = table["summary"].removesuffix(".") + stands
    parser = place.add_parser(
        name,
        help=f"{summary[:1].lower()}{summary[1:]}",
        description=f"{summary}.",
        allow_abbrev=False,
        conflict_handler="resolve",  # -o is left where an argument of the function is called output
    )
    fixed = dict(command["fixed"])
    by_name = {option["name"]: option for option in table["options"]}
    lists = _lists(table)
    for argument in (OUTPUT, JSON, *([limit()] if lists else [])):
        parser.add_argument(*argument.names, **argument.options)
    for named in command["positional"]:
        _add_option(parser, by_name[named], flag=False)
    for named, option in by_name.items():
        if (
            named not in fixed
            and named not in command["positional"]
            and not (named == "limit" and _is_page(table))
        ):
            _add_option(parser, option, flag=True)
    parser.set_defaults(command=partial(_run, table=table, fixed=fixed))


def _lists(table: Table) -> bool:
    """Whether a result is shown as the rows of a table alone, of which `--limit` says how many."""
    view = table["view"] or {}
    return bool(view.get("columns") and not view.get("facts"))


def _is_page(table: Table) -> bool:
    """Whether a resource is asked for no more rows than are shown; what a project's function calls its limit is its own."""
    return bool(
        table.get("route") and _lists(table) and any(option["name"] == "limit" for option in table["options"])
    )


def parse_flags(function: str, schema: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Read the flags of a function that `toque run` and `submit` pass on, by the schema of its arguments."""
    return _arguments_of(vars(_flags(function, schema).parse_args(words)))


def flags_help(function: str, schema: Mapping[str, Any], description: str) -> str:
    """Help on the flags of a function that `toque run` and `submit` pass on: each with its type, meaning and default."""
    parser = _flags(function, schema)
    parser.description = description
    parser.epilog = (
        f"`toque run --help` has the options of every function: --json, --key, --here; `toque functions {function}` shows its "
        "result and limits."
    )
    return parser.format_help()


def _flags(function: str, schema: Mapping[str, Any]) -> Parser:
    parser = Parser(
        prog=f"toque run {function}", add_help=False, allow_abbrev=False, conflict_handler="resolve"
    )
    types = {parameter.name: parameter.type for parameter in parameters(schema)}
    for option in map(asdict, options(schema)):
        must = ", required" if option["required"] else ""
        text = f"{types[option['name']]}{must}: {option['help'] or 'without a description'}"
        _add_option(parser, option | {"required": False, "help": text}, flag=True)  # some may be in --json
    return parser


def _add_option(parser: argparse.ArgumentParser, option: Mapping[str, Any], *, flag: bool) -> None:
    """Add an argument of a function to the parser of a command, by position or as a flag."""
    name, kind = option["name"], option["kind"]
    default = option["default"].strip('"')
    text = option["help"] if flag else _SHOWN.get(name, option["help"])
    text = text.removesuffix(".").replace("%", "%%") + (
        f" (default: {default})" if default not in {"", "null", "[]", "{}"} and len(default) <= _SHORT else ""
    )
    taken: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    if kind == "boolean":
        taken["action"] = argparse.BooleanOptionalAction
    else:
        taken["type"] = _READERS[kind]
        if option["choices"]:
            taken["choices"] = option["choices"]
        else:
            taken["metavar"] = _METAVARS.get(kind, name.upper()) if flag else name
        if option["several"]:
            taken["nargs"] = "+" if option["required"] else "*"
            taken |= {"action": "extend"} if flag else {}
    dest = f"{_PREFIX}{name}"
    if flag:
        taken |= {"required": option["required"], "dest": dest}
        parser.add_argument(f"--{name.replace('_', '-')}", **taken)
    else:
        if not option["required"]:
            taken["nargs"] = "*" if option["several"] else "?"
        parser.add_argument(dest, **{"metavar": name, **taken})


def _arguments_of(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the function that a command line named."""
    return {name.removeprefix(_PREFIX): value for name, value in parsed.items() if name.startswith(_PREFIX)}


def _run(given: Given, *, table: Table, fixed: Mapping[str, str]) -> int:
    arguments = _arguments_of(vars(given)) | dict(fixed)
    if _is_page(table):
        arguments["limit"] = given.limit + 1  # one more tells that there are more
    vars(given).update(
        {name: arguments[name] for name in KINDS if name in arguments}
    )  # for what explains a refusal
    if "model" in arguments:
        require_model(given)
    result = _send(given.client, table, arguments)
    defaults = {option["name"]: json.loads(option["default"] or "null") for option in table["options"]}
    view = table["view"] or {}
    known = defaults | arguments
    failures = [field.partition(": ") for field in view.get("failure", "").split(" | ") if field]
    failed = [sentence for field, _, sentence in failures if result[field]]
    if said := next(filter(None, failed), ""):
        raise Failed(said.format_map(known | result))
    show(given, view, result, known)
    return int(bool(failed))


def _send(client: Client, table: Table, arguments: Mapping[str, Any]) -> Any:
    """Call a function, by its route if it has one, which a grant for one model allows, too."""
    route, rest = table.get("route"), dict(arguments)
    if not route:
        return call(client, table["function"], rest)
    path = re.sub(r"\{(\w+)\}", lambda named: quote(str(rest.pop(named[1])), safe=""), route["path"])
    sent = {"params" if route["method"] in {"GET", "DELETE"} else "body": rest}
    return client.send(route["method"], path, **sent).json()


def show(given: Given, view: Mapping[str, str], result: Any, arguments: Mapping[str, Any]) -> None:
    """Print a function's result by its view; without one, by the result's own fields."""
    fields = result if isinstance(result, dict) else {}
    known = {**fields, **arguments, "result": result}
    for name, part in fields.items():
        if isinstance(part, list) and part and all(isinstance(line, str) for line in part):
            known[name] = "\n".join(part)
    if view.get("text"):
        text = view["text"].format_map(known) if result or not view["empty"] else view["empty"]
        message(given.output, text, result)
    elif view.get("columns"):
        rows = reduce(getitem, filter(None, view.get("rows", "").split(".")), result)
        rows = newest_first(rows, view["newest"]) if view.get("newest") else rows
        _show_rows(given, view, result, rows, _filled(view["empty"], known))
    elif view.get("facts"):
        facts(given.output, _columns(view, "facts"), result)
    else:
        _show_plainly(given, result)
    if view.get("page"):
        see_page(given.output, given.client.page(*view["page"].format_map(known).split("/")))


def _filled(text: str, known: Mapping[str, Any]) -> str:
    """A sentence with its names filled in; a part in brackets is left out where what it names is not given."""
    shown = re.sub(r"\[([^][]*\{(\w+)\}[^][]*)\]", lambda part: part[1] if known.get(part[2]) else "", text)
    return shown.format_map(known)


def _show_rows(given: Given, view: Mapping[str, str], result: Any, rows: list[Any], empty: str) -> None:
    table = _columns(view, "columns")
    if view.get("facts"):
        facts_and_table(given.output, _columns(view, "facts"), result, table, rows)
    else:
        listing(given.output, table, rows, empty=empty, limit=vars(given).get("limit"))


def _columns(view: Mapping[str, str], part: str) -> Sequence[Column]:
    """The columns of a view's rows or facts; further ones are those of the rows where there are any."""
    wide = view["wide"] if part == "columns" or not view.get("columns") else ""
    headings = {each.partition(": ")[0] for each in f"{view[part]} | {wide}".split(" | ")}
    return columns(view[part], wide=wide, texts=" | ".join(headings.intersection(view["texts"].split(" | "))))


def _show_plainly(given: Given, result: Any) -> None:
    """Show rows of objects as a table of their fields, an object by its fields, a text as it is, anything else as JSON."""
    if isinstance(result, list) and result and all(isinstance(row, dict) for row in result):
        listing(given.output, _fields(result[0]), result, empty="", limit=vars(given).get("limit"))
    elif isinstance(result, dict) and result:
        facts(given.output, _fields(result), result)
    elif isinstance(result, str):
        message(given.output, result, result)
    else:
        value(result)


def _fields(row: Mapping[str, Any]) -> Sequence[Column]:
    return [
        Column(name.replace("_", " "), name, text=isinstance(part, str | dict | list))
        for name, part in row.items()
    ]


def find_tables(client: Client, word: str) -> list[Table]:
    """Ask the platform for the functions of the workspace whose commands begin with a word. Raises: Refused; Unreachable."""
    found: list[Table] = []
    for summary in client.get("/functions", brief=True):
        commands = [command for command in summary["commands"] if command["words"][0] == word]
        if commands:
            table = command_table(client.get(f"/functions/{summary['name']}"))
            found.append(table | {"commands": commands})
    return found
