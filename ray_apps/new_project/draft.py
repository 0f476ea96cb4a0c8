"""Draft of a project: what was guessed and chosen about a table, from which the project's files are written."""

from __future__ import annotations

import keyword
import re
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from toque.ray_apps.new_project.checks import Checked, check
from toque.ray_apps.new_project.columns import MISSING, ColumnSummary, Summaries, summarize
from toque.ray_apps.new_project.errors import InitError
from toque.ray_apps.new_project.findings import Finding
from toque.ray_apps.new_project.outcomes import BY_NETWORK
from toque.ray_apps.new_project.roles import Roles, Wishes, column_named, roles_of
from toque.ray_apps.new_project.source import Source
from toque.registry.store import RESERVED_TABLES

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_OWN_TABLES = RESERVED_TABLES | {"training"}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the user wants the table read.

    drop, keep: columns left out of the features, or kept against advice; as_text: columns that are no numbers; missing:
    further words for a missing value.
    """

    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    as_text: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All words for a missing value."""
        return tuple(dict.fromkeys((*MISSING, *self.missing)))


@dataclass(frozen=True, slots=True)
class Draft:
    """A project before it is written.

    name: of the model and the folder; found: the table's columns; days: of its times, 0 without times.
    """

    name: str
    source: Source
    found: Summaries
    roles: Roles
    checked: Checked
    days: int = 0

    @property
    def package(self) -> str:
        """Name of the Python package."""
        return self.name.replace("-", "_")


def check_project_name(name: str) -> str:
    """Return `name` if a folder, a package and a model may have it. Raises: InitError."""
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package):
        raise InitError(f"{name!r}: begin with a small letter, and use small letters, digits, _ and -")
    if package in _OWN_TABLES:
        raise InitError(f"{name!r} is the name of a table of the platform; take another")
    found = find_spec(package)
    if found is not None and found.origin is not None:
        raise InitError(f"{name!r}: Python finds a package of this name at {found.origin}; take another")
    return name


def draft_of(name: str, source: Source, wishes: Wishes, reading: Reading) -> Draft | list[Finding]:
    """Read a table and draft a project for it; returns the findings alone where its form lets nothing be guessed.

    Raises: InitError if the table cannot be read, or an option names what is not there.
    """
    if faults := source.faults():
        return faults
    with tempfile.TemporaryDirectory(prefix="toque-init-") as scratch:
        table = source.scan(Path(scratch))
        found = summarize(table, as_text=reading.as_text, missing=reading.words)
        if not found.rows or not found.columns:
            return [Finding("", "the table has no rows", "give one with rows", refused=True)]
        for option, names in (
            ("--drop", reading.drop),
            ("--keep", reading.keep),
            ("--text", reading.as_text),
        ):
            for column in names:
                column_named(found, column, option)
        roles = roles_of(table, found, wishes, reading.words)
        checked = check(table, found, roles, missing=reading.words, drop=reading.drop, keep=reading.keep)
        checked = replace(checked, findings=(*checked.findings, *_needed(roles)))
        days = _days(table, found[roles.time]) if roles.time else 0
    return Draft(name, source, found, roles, checked, days)


def _needed(roles: Roles) -> list[Finding]:
    """Name the library that must be installed to learn the outcome, if it is not."""
    if roles.outcome in BY_NETWORK or find_spec("xgboost") is not None:
        return []
    problem = f"a {roles.outcome} is learnt by XGBoost, which is not installed"
    return [Finding("", problem, "pip install 'toque[flavors]' before `toque train`")]


def _days(table: pl.LazyFrame, time: ColumnSummary) -> int:
    """Count the days of a column of times."""
    column = pl.col(time.original)
    if time.format:
        column = column.str.strip_chars().str.to_datetime(time.format, time_unit="us", strict=False)
    return int(table.select(column.dt.date().n_unique()).collect(engine="streaming").item())
