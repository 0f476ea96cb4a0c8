"""Checks of a user's table: what is left out of the features or read otherwise, and what makes a project impossible."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from toque.ray_apps.new_project.columns import ColumnSummary, Summaries
from toque.ray_apps.new_project.findings import Finding, share, shown
from toque.ray_apps.new_project.leaks import leaks, sampled
from toque.ray_apps.new_project.outcomes import CLASSIFIED, MIN_CLASS_ROWS
from toque.ray_apps.new_project.roles import Roles, class_counts, duplicates

MIN_ROWS = 50
_MANY_CATEGORIES = 10_000  # more get no embedding of their own (`TabularParams.max_categories`)
_MOST = 0.5  # share of distinct texts from which on a column names rows instead of grouping them
_MIN_UNIQUE = 100  # distinct texts below which that share says nothing


@dataclass(frozen=True, slots=True)
class Checked:
    """Features that are left, numbers and categories, and everything that was found."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def refused(self) -> list[Finding]:
        """Findings that make a project impossible."""
        return [each for each in self.findings if each.refused]


@dataclass(slots=True)
class _Choice:
    """Choice of features so far, and why the others were left out."""

    keep: Collection[str]
    left_out: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def leave_out(self, finding: Finding, column: ColumnSummary) -> None:
        if not {column.name, column.original} & set(self.keep):
            self.left_out.add(column.name)
            self.findings.append(finding)


def check(
    table: pl.LazyFrame,
    found: Summaries,
    roles: Roles,
    *,
    missing: Sequence[str],
    drop: Collection[str] = (),
    keep: Collection[str] = (),
) -> Checked:
    """Check every column, and choose the features. drop, keep: columns that the user leaves out, or insists on."""
    choice = _Choice(keep, {roles.label, roles.time or "", *roles.keys})
    choice.left_out |= {column.name for column in found.columns if {column.name, column.original} & set(drop)}
    for column in found.columns:
        choice.findings += _dirt(column, found)
        if column.name not in choice.left_out:
            _choose(column, found, choice)
    choice.findings += _rows(table, found, roles, missing)
    features = [column for column in found.columns if column.name not in choice.left_out]
    refused = any(each.refused for each in choice.findings)
    given_away = (
        []
        if refused
        else list(leaks(sampled(table, found, missing), roles, [each.name for each in features]))
    )
    for finding in given_away:
        choice.leave_out(finding, found[finding.column])
    features = [column for column in features if column.name not in choice.left_out]
    if not features:
        choice.findings.append(
            Finding("", "no column is left as a feature", "keep one by --keep COLUMN", refused=True)
        )
    return Checked(
        numeric=tuple(column.name for column in features if column.numeric),
        categorical=tuple(column.name for column in features if not column.numeric),
        findings=tuple(sorted(choice.findings, key=lambda each: not each.refused)),
    )


def _dirt(column: ColumnSummary, found: Summaries) -> Iterator[Finding]:
    """Find values that are not what their column holds, and say how times and missing values are read."""
    name, examples = column.original, ", ".join(shown(each) for each in column.misfits)
    if column.kind == "mixed":
        problem = f"mixed types: {share(column.misfit_count, column.rows)} values are no number"
        words = " ".join(f"--null {shown(each)}" for each in dict.fromkeys(column.misfits))
        remedy = f"mend them, or say {words} if they mean a missing value, or --text {name} if it is no number at all"
        yield Finding(name, problem, remedy, column.misfit_count, examples, refused=True)
    elif (
        column.kind == "text"
        and column.numbers
        and column.misfit_count
        and column.numbers * 10 >= column.rows
    ):
        problem = f"mixed types: {share(column.numbers, column.rows)} values are numbers"
        yield Finding(name, problem, "taken as text", column.numbers, examples)
    if column.kind == "text" and column.zeros and not column.misfit_count:
        yield Finding(
            name,
            "its numbers begin with 0",
            "taken as text, as codes are",
            column.zeros,
            shown(column.examples[0]),
        )
    if column.kind == "time" and not column.zoned:
        yield Finding(
            name,
            "its times name no zone",
            "read as UTC; mend load.py if they are local",
            column.rows,
            shown(column.examples[0]),
        )
    if column.words and column.kind != "empty":
        words = ", ".join(shown(word) for word in column.words)
        yield Finding(
            name, f"{share(column.missing, found.rows)} values are {words}", "read as missing", column.missing
        )
    if column.name != name:
        yield Finding(
            name, "its name is no identifier or is one of ours", f"called {column.name}", found.rows
        )


def _choose(column: ColumnSummary, found: Summaries, choice: _Choice) -> None:
    """Leave a column out of the features if nothing can be learnt from it."""
    name = column.original
    if column.kind == "other":
        choice.left_out.add(column.name)
        choice.findings.append(
            Finding(name, "it holds lists, structures or bytes", "left out of the features", column.rows)
        )
    elif column.kind == "time":
        choice.left_out.add(column.name)
        remedy = "left out; make a feature of it in load.py, such as the hour"
        choice.findings.append(Finding(name, "a time is no feature by itself", remedy, column.rows))
    elif column.constant:
        choice.left_out.add(column.name)
        value = shown(column.examples[0]) if column.examples else "missing"
        problem = f"constant: every row has the same value {value}"
        choice.findings.append(Finding(name, problem, "left out of the features", found.rows))
    elif column.kind == "text" and _names_rows(column):
        problem = f"about {column.distinct:,} distinct texts in {column.rows:,} rows: a name or free text, no category"
        remedy = f"left out of the features (--keep {name} keeps it)"
        choice.leave_out(Finding(name, problem, remedy, column.distinct, shown(column.examples[0])), column)


def _names_rows(column: ColumnSummary) -> bool:
    return column.distinct > _MANY_CATEGORIES or (
        column.distinct >= _MIN_UNIQUE and column.distinct > _MOST * column.rows
    )


def _rows(table: pl.LazyFrame, found: Summaries, roles: Roles, missing: Sequence[str]) -> Iterator[Finding]:
    """Check the number of rows, the key, and the label."""
    label = found[roles.label]
    if label.rows < MIN_ROWS:
        problem = f"{label.rows} rows have a label, and a model needs {MIN_ROWS}"
        yield Finding("", problem, "give more rows", label.rows, refused=True)
    if label.missing:
        problem = f"{share(label.missing, found.rows)} rows have no label"
        yield Finding(label.original, problem, "they are stored and not learnt from", label.missing)
    if roles.time and found[roles.time].missing:
        time = found[roles.time]
        problem = f"{share(time.missing, found.rows)} rows have no time"
        yield Finding(time.original, problem, "fill them in, or leave --time out", time.missing, refused=True)
    yield from _key(table, found, roles)
    if roles.outcome in CLASSIFIED:
        yield from _rare_classes(table, label, roles.separator, missing)


def _key(table: pl.LazyFrame, found: Summaries, roles: Roles) -> Iterator[Finding]:
    names = [found[name].original for name in roles.key_columns]
    for name in roles.key_columns:
        column = found[name]
        if column.missing:
            problem = f"{share(column.missing, found.rows)} rows have no key"
            yield Finding(
                column.original, problem, "fill them in, or leave --key out", column.missing, refused=True
            )
        if column.kind not in {"integer", "text", "flag"}:
            problem = f"a key is an integer or a text, and this is of kind {column.kind}"
            yield Finding(column.original, problem, "name another by --key", column.rows, refused=True)
    twice, example = duplicates(table, found, roles.key_columns, roles.time) if roles.key else (0, {})
    if twice:
        when = f" at one {roles.time}" if roles.time else ""
        remedy = "leave --key out (each row gets a number), add a column to --key, or keep one row of each"
        remedy = remedy if roles.time else f"{remedy}, or name the --time that tells them apart"
        problem = f"duplicate keys: {share(twice, found.rows)} rows have the key of an earlier row{when}"
        yield Finding(", ".join(names), problem, remedy, twice, str(example), refused=True)


def _rare_classes(
    table: pl.LazyFrame, label: ColumnSummary, separator: str, missing: Sequence[str]
) -> Iterator[Finding]:
    counted = class_counts(table, label, missing, separator=separator)
    rare = [(name, rows) for name, rows in counted if rows < MIN_CLASS_ROWS]
    if rare:
        examples = ", ".join(f"{shown(name)} with {rows}" for name, rows in rare[:3])
        problem = f"{len(rare)} classes have fewer than {MIN_CLASS_ROWS} rows"
        remedy = "merge them with others, or leave their rows out"
        if label.numeric:
            remedy += ", or say --outcome number"
        yield Finding(label.original, problem, remedy, len(rare), examples, refused=True)
