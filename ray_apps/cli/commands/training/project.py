"""`toque init` and `toque train`: from a file to a project, and from a project to a version of its model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from toque.ray_apps.cli.arguments import arg, flag, repeatable
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import columns, message, note, say, table

if TYPE_CHECKING:
    from toque.ray_apps.new_project import Draft, Finding, Wishes

# toque.ray_apps.new_project is imported by the command that needs it: it brings polars.

_GUESSES = columns("role | taken as: value | because: reason | to change it: option", texts="because")
_LISTED = 20

_NAME = arg("name", "name of the project: its folder, its package and its model")
_FROM = arg(
    "--from FILE", "a CSV, TSV or Parquet file, or an SQLite database as in sqlite:///data.db", dest="source"
)
_QUERY = arg("--query SQL", "which rows of a database (default: its only table)", default="")
_LABEL = arg("--label COLUMN", "what the model predicts (default: guessed)")
_KEY = repeatable("--key COLUMN", "what identifies a row, or `row` for its number (default: guessed)")
_TIME = arg("--time COLUMN", "when a row was known, or `none` (default: guessed)")
_OUTCOME = arg(
    "--outcome",
    "what the label is (default: guessed)",
    choices=["binary", "multiclass", "multilabel", "number", "count", "ranking", "vector"],
)
_GROUP = arg("--group COLUMN", "of a ranking, what names the request of a row (default: guessed)")
_POSITIVE = arg("--positive VALUE", "which of a label's two values counts as 1 (default: guessed)")
_DROP = repeatable("--drop COLUMN", "leave a column out of the features")
_KEEP = repeatable("--keep COLUMN", "keep a column that was left out")
_TEXT = repeatable("--text COLUMN", "take a column as texts, even if it looks like numbers")
_NULL = repeatable("--null WORD", "a further word for a missing value")
_ENCODING = arg("--encoding NAME", "of a CSV file (default: %(default)s)", default="utf-8")
_YES = flag("--yes", "take the guesses as they are, without asking")
_INIT = (
    _NAME,
    _FROM,
    _QUERY,
    _LABEL,
    _KEY,
    _TIME,
    _OUTCOME,
    _GROUP,
    _POSITIVE,
    _DROP,
    _KEEP,
    _TEXT,
    _NULL,
    _ENCODING,
    _YES,
)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "init", _init, *_INIT)


def _init(given: Given) -> None:
    """Make a project of a table: a small package with features, a model, a loading step and a test."""
    from toque.ray_apps.new_project import (
        InitError,
        check_absent,
        check_project_name,
        code_lines,
        pages,
        write_project,
    )

    try:
        folder = Path.cwd() / check_project_name(given.name)
        check_absent(folder)
        draft = _agreed(given)
        files = pages(draft)
        write_project(folder, files)
    except InitError as error:
        raise Failed(str(error)) from error
    where = {"folder": str(folder), "files": sorted(files), "code_lines": code_lines(files)}
    text = f"made {folder.name}/ with {len(files)} files and {where['code_lines']} lines of code; next: cd {folder.name} && toque train"
    message(given.output, text, where)


def _agreed(given: Given) -> Draft:
    """Draft a project, and have a person at a terminal correct it. Raises: InitError; Failed."""
    from toque.ray_apps.new_project import Reading, Source, draft_of

    if not given.source:
        raise UsageError(
            "which table? give --from with a CSV, Parquet or SQLite file, as in --from houses.csv"
        )
    source = Source.of(given.source, query=given.query, encoding=given.encoding)
    reading = Reading(tuple(given.drop), tuple(given.keep), tuple(given.text), tuple(given.null))
    wishes = _wishes(given)
    while True:
        draft = draft_of(given.name, source, wishes, reading)
        if isinstance(draft, list):
            _refuse(draft)
        _show(given, draft)
        corrected = None if given.yes or not sys.stdin.isatty() else _corrected(draft, wishes)
        if corrected is None:
            if draft.checked.refused:
                _refuse(draft.checked.refused)
            return draft
        wishes = corrected


def _wishes(given: Given) -> Wishes:
    from toque.ray_apps.new_project import Wishes

    keys = tuple(name for each in given.key for name in each.split(","))
    return Wishes(given.label, keys, given.time, given.outcome, given.positive, given.group)


def _show(given: Given, draft: Draft) -> None:
    """Show the guesses and what was found, on standard error beside JSON."""
    speak = note if given.output == "json" else say
    found = draft.found
    speak(f"{draft.source.name}: {found.rows:,} rows, {len(found.columns)} columns")
    if given.output != "json":
        rows = [
            {"role": each.role, "value": each.value, "reason": each.reason, "option": each.option}
            for each in draft.roles.guesses
        ]
        table(given.output, _GUESSES, rows)
    checked = draft.checked
    speak(f"features: {', '.join((*checked.numeric, *checked.categorical)) or 'none'}")
    for each in checked.findings:
        if not each.refused:
            speak(f"note: {each}")


def _refuse(findings: list[Finding]) -> NoReturn:
    """Print every finding that makes a project impossible, a line each. Raises: Failed."""
    for each in findings[:_LISTED]:
        note(f"refused: {each}")
    more = f", of which {_LISTED} are shown" if len(findings) > _LISTED else ""
    raise Failed(f"no project was made: {len(findings)} finding(s) must be mended first{more}")


def _corrected(draft: Draft, wishes: Wishes) -> Wishes | None:
    """Ask for each guess whether it is right; None if all are."""
    from dataclasses import replace

    answers: dict[str, Any] = {}
    for each in draft.roles.guesses:
        answer = _ask(f"{each.role} [{each.value}]: ")
        if answer and answer != each.value:
            answers[each.role] = tuple(answer.split(",")) if each.role == "key" else answer
    return replace(wishes, **answers) if answers else None


def _ask(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()
