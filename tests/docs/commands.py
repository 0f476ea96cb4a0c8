"""Checks commands of a page without running them: by the parsers, targets, routes and signatures they would meet."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from tests.docs.pages import ROOT, Block, Page
from toque.functions import Context
from toque.functions.runtime import catalog
from toque.functions.runtime.errors import InvalidArguments
from toque.ray_apps.cli.main import parser as toque_parser
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry import Access, open_store

_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
_OUR_FILE = re.compile(r"^(?:clusters|docs|examples|functions|load|ray_apps|registry|tests)/[\w./-]+\.\w+$")
_OUR_MODULE = re.compile(r"(?:examples|toque)(?:\.|$)")
_PREFIXES = frozenset({"do", "exec", "nohup", "sudo", "time"})
_PLAIN = frozenset(
    [
        "aws",
        "base64",
        "cat",
        "cd",
        "cp",
        "docker",
        "done",
        "echo",
        "eksctl",
        "eval",
        "export",
        "for",
        "gcloud",
        "git",
        "grep",
        "head",
        "helm",
        "jq",
        "kind",
        "kubectl",
        "locust",
        "ls",
        "mkdir",
        "openssl",
        "perf_analyzer",
        "rm",
        "sleep",
        "source",
        "tail",
        "wait",
    ]
)
# Routes of the Open Inference Protocol v2, of the OpenAI API and of the predictor's own health, which are spelt by hand
# because the predictor is no FastAPI application.
_SERVED = (
    ("GET", r"/v2"),
    ("GET", r"/v2/health/(live|ready)"),
    ("GET", r"/v2/models/[^/]+(/versions/[^/]+)?(/ready|/stats)?"),
    ("POST", r"/v2/models/[^/]+(/versions/[^/]+)?/infer"),
    ("POST", r"/v2/repository/index"),
    ("GET", r"/metrics"),
    *((method, r"/api/2\.0/mlflow(-artifacts)?/.+") for method in ("GET", "POST", "PUT")),
)


class CommandError(Exception):
    """A command that would not be understood; the message says why."""


def commands_of(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block of shell, parts of pipes and of `&&` apart.

    Raises: CommandError for a here-document, which hides what it holds from every check.
    """
    pending = ""
    for line in block.text.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip() + " "
            continue
        try:
            words = list(_lexer(pending))
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        if "<<" in words:
            raise CommandError("a here-document: show the file as a block of its own")
        yield from _simple_commands(words)
    if pending.strip():
        raise CommandError(f"a quotation is not closed: {pending}")


def _lexer(line: str) -> Iterator[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return iter(lexer)


def _simple_commands(words: Iterable[str]) -> Iterator[list[str]]:
    command: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word and set(word) <= set("|&;"):
            if command:
                yield command
            command = []
        elif word and set(word) <= set("<>&|"):
            skip = True
            if command and command[-1].isdigit():
                command.pop()
        else:
            command.append(word)
    if command:
        yield command


def check(words: list[str], page: Page) -> None:
    """Check one command as far as possible without running it.

    Raises: CommandError if its program, target, flag, route, function, argument or file does not exist.
    """
    while words and (_ASSIGNMENT.match(words[0]) or words[0] in _PREFIXES):
        words = words[1:]
    if not words:
        return
    for word in words:
        for inner in re.findall(r"\$\(([^()]*)\)", word):
            for each in commands_of(Block("bash", inner, 0, runs=True)):
                check(each, page)
        if _OUR_FILE.match(word) and not (ROOT / word).exists():
            raise CommandError(f"{word} does not exist")
    program = words[0].rpartition("/")[2]
    if program in _CHECKS:
        _CHECKS[program](words[1:], page)
    elif program not in _PLAIN and not program.startswith("$"):
        raise CommandError(
            f"{program!r} is no program that the pages may use; add a check for it to {__name__}"
        )


def _toque(arguments: list[str], page: Page) -> None:
    given = parse(_exact_parser(), arguments)
    if arguments[:1] in (["run"], ["submit"]) and not given.json.startswith(("@", "-")):
        check_call(given.function, given.json, page)
    policy = next((arguments[at + 1] for at, word in enumerate(arguments) if word == "--set"), None)
    if policy is not None:
        json.loads(policy)


@cache
def _exact_parser() -> argparse.ArgumentParser:
    return _exact(toque_parser())


def _exact(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, taking whole flags only: a page shows none that is cut short."""
    parser.allow_abbrev = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _exact(each)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The parsed arguments. Raises: CommandError with the parser's message."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            return parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            raise CommandError(errors.getvalue().strip().splitlines()[-1]) from end
        return argparse.Namespace()


def check_call(name: str, text: str, page: Page) -> None:
    """Check the name of a function and its JSON arguments against its signature.

    Raises: CommandError if neither the platform, the flights project nor the page declares it, or it would refuse them.
    """
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise CommandError(f"not JSON: {error}: {text}") from error
    if not isinstance(arguments, dict):
        raise CommandError(f"arguments are a JSON object, not {text}")
    declared = declared_on(page)
    if name in declared:
        required, known = declared[name]
        if not required <= set(arguments) <= known:
            raise CommandError(f"{name} takes {sorted(known)}, not {sorted(arguments)}")
        return
    function = platform_functions().get(name)
    if function is None:
        raise CommandError(f"no function {name!r}")
    try:
        function.signature.load(arguments)
    except InvalidArguments as error:
        raise CommandError(str(error)) from error


@cache
def platform_functions() -> Mapping[str, Any]:
    """The functions of the platform and of the flights project, by name."""
    modules = (*catalog.PLATFORM, "examples.flights")
    found = catalog.discover(modules)
    rooms = {each.partition(".")[0] for each in modules}
    return {each.name: each for each in found if each.reference.partition(".")[0] in rooms}


def declared_on(page: Page) -> dict[str, tuple[set[str], set[str]]]:
    """The functions that a page's blocks define: the arguments that each requires, and all it takes."""
    found = {}
    for block in page.blocks:
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.FunctionDef):
                names = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
                optional = names[len(node.args.args) - len(node.args.defaults) : len(node.args.args)]
                found[node.name] = (
                    set(names) - set(optional) - {a.arg for a in node.args.kwonlyargs},
                    set(names),
                )
    return found


def _python(arguments: list[str], page: Page) -> None:
    if arguments[:1] != ["-m"]:
        files = {block.file_name for block in page.blocks}
        if not arguments or not (arguments[0] in files or (ROOT / arguments[0]).exists()):
            raise CommandError(f"python runs modules by -m, or a file that exists: {arguments}")
        return
    module, rest = arguments[1], arguments[2:]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    if spec is None:
        raise CommandError(f"no module {module!r}")
    if module == "pip":
        _pip(rest, page)
    elif module == "pytest":
        _pytest(rest)
    elif module == "toque.functions" and (words := _of_functions(rest))[:1] in (["run"], ["submit"]):
        text = words[words.index("--json") + 1] if "--json" in words else "{}"
        check_call(words[1], text, page)


def _of_functions(arguments: list[str]) -> list[str]:
    while arguments[:1] == ["--module"]:
        arguments = arguments[2:]
    return arguments


def _pytest(arguments: list[str]) -> None:
    for word in arguments:
        if word.startswith("tests") and not (ROOT / word.partition("::")[0]).exists():
            raise CommandError(f"{word} does not exist")


def module_commands(page: Page) -> list[list[str]]:
    """`python -m` of our own modules on a page, as module and arguments, for a process that imports them."""
    blocks = [block for block in page.blocks if block.language == "bash"]
    commands = [_as_module(words) for block in blocks for words in commands_of(block)]
    return [words[words.index("-m") + 1 :] for words in commands if _OUR_MODULE.match(_after(words, "-m"))]


def _as_module(words: list[str]) -> list[str]:
    """The words, and those of `toque demo -- …` as the command of the module that parses what follows the dashes."""
    if "demo" in words and "--" in words:
        return ["python", "-m", "examples.flights.demo", *words[words.index("--") + 1 :]]
    return words


def _after(words: list[str], word: str) -> str:
    return next(iter(words[words.index(word) + 1 :]), "") if word in words else ""


def _make(arguments: list[str], _: Page) -> None:
    makefile = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([a-z0-9][a-z0-9 -]*):(?!=)", makefile, flags=re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    variables = set(re.findall(r"^(\w+) *[?:]?=", makefile, flags=re.MULTILINE))
    for word in arguments:
        if word.startswith("-"):
            continue
        name, assigned, _value = word.partition("=")
        if name not in (variables if assigned else targets):
            raise CommandError(f"make knows no {'variable' if assigned else 'target'} {name!r}")


def _pip(arguments: list[str], _: Page) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in arguments:
        for wanted in re.findall(r"^\.\[([\w,-]+)\]$", word):
            if unknown := set(wanted.split(",")) - set(extras):
                raise CommandError(f"no extra {sorted(unknown)}")


def _curl_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="curl", add_help=False, allow_abbrev=False)
    parser.add_argument("url")
    for flag in ("-s", "-S", "-f", "-i", "-N", "-L", "-sS", "-sf", "-sN"):
        parser.add_argument(flag, action="store_true", dest=f"flag{flag}")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data", "--data-binary", "--json", dest="data")
    parser.add_argument("-X", "--request")
    parser.add_argument("-o", "--output")
    parser.add_argument("--cacert")
    return parser


def _curl(arguments: list[str], page: Page) -> None:
    given = parse(_curl_parser(), arguments)
    found = re.match(r"^(?:https?://[^/]+|\$\{?TOQUE_URL\}?)(/[^?]*)?", given.url)
    if found is None:
        raise CommandError(f"{given.url} is no address of a platform")
    method, path = given.request or ("POST" if given.data else "GET"), found.group(1) or "/"
    if not any(method == known and re.fullmatch(pattern, path) for known, pattern in routes()):
        raise CommandError(f"no route {method} {path}")
    called = re.fullmatch(r"/functions/(\w+)", path)
    if called and method == "POST":
        check_call(called.group(1), given.data or "{}", page)
    elif given.data and not given.data.startswith("@"):
        _json(given.data)


def _json(text: str) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise CommandError(f"not JSON: {error}: {text}") from error


@cache
def routes() -> tuple[tuple[str, str], ...]:
    """The methods and path patterns that the gateway's own OpenAPI document, and the predictor, answer."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"file://{folder}"
        context = Context(open_store(url), url)
        services = Services(context=context, labels=_no_labels, access=Access(context.store, actor="docs"))
        document = build_app(services).openapi()
    ours = [
        (method.upper(), re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path)))
        for path, methods in document["paths"].items()
        for method in methods
    ]
    # the document has a path for each function of its own process; `check_call` knows those of the pages too
    return (*ours, *_SERVED, ("POST", r"/functions/\w+"), ("GET", r"/openapi\.json"), ("GET", r"/docs"))


def _no_labels(_: str) -> Any:
    raise AssertionError("no route is asked")


def _ray(arguments: list[str], page: Page) -> None:
    import click  # late, both: a second, for the pages that show Ray's own commands
    from ray.scripts.scripts import cli

    ours = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    command: click.Command = cli
    try:
        click_context = command.make_context("ray", list(arguments))
        while isinstance(command, click.Group):
            name, found, rest = command.resolve_command(
                click_context, [*click_context._protected_args, *click_context.args]
            )
            if found is None:
                raise CommandError(f"ray knows no command {name!r}")
            command = found
            click_context = command.make_context(name, rest, parent=click_context)
    except click.ClickException as error:
        raise CommandError(f"ray: {error.format_message()}") from error
    if ours:
        check(ours, page)


_CHECKS = {
    "toque": _toque,
    "python": _python,
    "python3": _python,
    "make": _make,
    "pip": _pip,
    "curl": _curl,
    "ray": _ray,
}


def check_span(text: str) -> None:
    """Check inline code that is the beginning of a command: its subcommands, flags, targets, files.

    Raises: CommandError if one of them does not exist.
    """
    if _OUR_FILE.match(text) and not (ROOT / text).exists():
        raise CommandError(f"{text} does not exist")
    words = text.replace("…", " ").split()
    if words[:1] == ["toque"]:
        _beginning_of(_exact_parser(), words[1:])
    elif words[:1] == ["make"] and len(words) > 1:
        _make([word for word in words[1:] if re.match(r"^[a-zA-Z]", word)], Page(ROOT / "README.md"))


def _beginning_of(parser: argparse.ArgumentParser, words: list[str]) -> None:
    for at, word in enumerate(words):
        choices = next(
            (each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None
        )
        if word.startswith("-"):
            flag = word.partition("=")[0].strip("\"'[]")
            if flag != "--" and flag not in parser._option_string_actions:
                raise CommandError(f"`{' '.join(words[: at + 1])}`: no flag {word}")
        elif choices is not None:
            if word not in choices:
                raise CommandError(f"`{' '.join(words[: at + 1])}`: no command {word!r}")
            parser = choices[word]
