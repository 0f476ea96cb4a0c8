"""Parses the command lines of our own modules by the parsers they make, and runs nothing beyond.

Standard input: JSON, a list of [module, argument, …]. Standard output, last line: JSON, the message for each, or null.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

PARSES = re.compile(r"parse_args|benchmarks\.harness import")
DELEGATING = frozenset({"toque.ray_apps.cli"})  # their parser is made in another module of theirs


class Parsed(BaseException):
    """The arguments were understood; a BaseException, so that no module takes it for an error of its own."""


def problem(module: str, arguments: list[str]) -> str | None:
    """Why the module would refuse the arguments; None if it accepts them."""
    spec = importlib.util.find_spec(module)
    source = Path(str(spec.origin)) if spec is not None else None
    if source is not None and source.name == "__init__.py":
        source = source.with_name("__main__.py")
    if source is None or not source.exists():
        return f"no module {module!r} that can be run"
    text = source.read_text()
    if "__main__" not in text and source.name != "__main__.py":
        return f"{module} does nothing when it is run"
    if not PARSES.search(text) and module not in DELEGATING:
        return f"{module} takes no arguments" if arguments else None
    return _parsed_by(module, arguments)


def _parsed_by(module: str, arguments: list[str]) -> str | None:
    errors = io.StringIO()
    sys.argv = [module, *arguments]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Parsed:
        return None
    except SystemExit as end:
        return (
            None
            if not end.code
            else (errors.getvalue().strip().splitlines() or [f"exit code {end.code}"])[-1]
        )
    return f"{module} parsed nothing"


def _instead_of_running() -> None:
    parse, make = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.__init__

    def make_exact(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        make(self, *given, **named | {"allow_abbrev": False})  # a page shows no flag that is cut short

    def parse_and_end(self: argparse.ArgumentParser, *given: Any, **named: Any) -> NoReturn:
        parse(self, *given, **named)
        raise Parsed

    argparse.ArgumentParser.__init__ = make_exact  # type: ignore[method-assign]
    argparse.ArgumentParser.parse_args = parse_and_end  # type: ignore[method-assign]


if __name__ == "__main__":
    _instead_of_running()
    answers = [problem(module, arguments) for module, *arguments in json.load(sys.stdin)]
    sys.stdout.write("\n" + json.dumps(answers) + "\n")
