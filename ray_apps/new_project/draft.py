"""Draft of a project: what was guessed, chosen and found about a table, from which the project's files are written.

Checks say what is left out of the features or read otherwise, and what makes a project impossible. A feature that
predicts without error is nearly always a consequence of the label, or the label written another way: the search for
those looks at up to 100,000 rows, spread over the table.
"""

from __future__ import annotations

import keyword
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl

from toque.ray_apps.new_project.columns import MISSING, ColumnSummary, Summaries, cleaned, summarize
from toque.ray_apps.new_project.roles import (
    BY_NETWORK,
    CLASSIFIED,
    MIN_CLASS_ROWS,
    Roles,
    Wishes,
    class_counts,
    column_named,
    duplicates,
    roles_of,
)
from toque.ray_apps.new_project.source import Finding, InitError, Source, share, shown
from toque.registry.store import RESERVED_TABLES

MIN_ROWS = 50
_MANY_CATEGORIES = 10_000  # more get no embedding of their own (`TabularParams.max_categories`)
_MOST = 0.5  # share of distinct texts from which on a column names rows instead of grouping them
_MIN_UNIQUE = 100  # distinct texts below which that share says nothing
_PROJECT_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_OWN_TABLES = RESERVED_TABLES | {"training"}
ROWS = 100_000  # that the search for what gives the label away looks at
_CHANCE = -20.0  # log of the chance below which values with one label each are no accident
_SAME = 0.99999  # correlation from which on two columns of numbers are one
_SEPARATED = 0.9995  # area under the curve from which on a number tells two classes apart


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
    if not _PROJECT_NAME.fullmatch(name) or keyword.iskeyword(package):
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


def sampled(table: pl.LazyFrame, found: Summaries, missing: Sequence[str]) -> pl.DataFrame:
    """Read up to 100,000 rows, evenly spread, under their names as identifiers; numbers as float64, the rest as text."""
    schema = table.collect_schema()
    step = max(1, -(-found.rows // ROWS))
    columns = []
    for column in found.columns:
        if column.kind in {"other", "empty"}:
            continue
        text = schema[column.original] == pl.String
        value = cleaned(column.original, missing) if text else pl.col(column.original)
        value = value.cast(pl.Float64 if column.numeric else pl.String, strict=False)
        columns.append(value.alias(column.name))
    spread = table.with_row_index("__row").filter(pl.col("__row") % step == 0)
    return spread.select(columns).collect(engine="streaming")


def leaks(rows: pl.DataFrame, roles: Roles, features: Sequence[str]) -> Iterator[Finding]:
    """Find the features that give the label away."""
    if roles.label not in rows.columns:  # lists, which no other column is compared with
        return
    known = rows.filter(pl.col(roles.label).is_not_null())
    for name in features:
        why = _gives_away(known.select(name, roles.label).drop_nulls(), name, roles)
        if why:
            yield Finding(
                name,
                f"it gives the label {roles.label} away: {why}",
                f"left out of the features (--keep {name} keeps it, if it is known before the label)",
                known.height,
            )


def _gives_away(both: pl.DataFrame, name: str, roles: Roles) -> str:
    if both.height < 30:  # noqa: PLR2004  # too few rows to tell
        return ""
    number = both.schema[name].is_numeric()
    if roles.outcome in {"number", "count", "ranking"}:
        same = number and abs(_correlation(both[name].to_numpy(), both[roles.label].to_numpy())) >= _SAME
        return "it is the same number up to a factor" if same else ""
    if _determined(both, name, roles.label):
        return "each of its values comes with one label"
    if number and roles.outcome == "binary":
        labels = both[roles.label].cast(pl.String).is_in(["1", "1.0", roles.classes[1]]).to_numpy()
        area = _area(both[name].to_numpy(), labels)
        if max(area, 1 - area) >= _SEPARATED:
            return "a threshold on it tells the two labels apart"
    return ""


def _determined(both: pl.DataFrame, name: str, label: str) -> bool:
    """Whether each value of a column has one label only, and that by more than chance."""
    groups = both.group_by(name).agg(pl.len().alias("rows"), pl.col(label).n_unique().alias("labels"))
    if groups["labels"].max() != 1:
        return False
    shares = both[label].value_counts()["count"].to_numpy() / both.height
    sizes = groups["rows"].to_numpy()
    chance = np.log((shares[None, :] ** np.unique(sizes)[:, None]).sum(axis=1))
    by_size = dict(zip(np.unique(sizes).tolist(), chance.tolist(), strict=True))
    return float(sum(by_size[size] for size in sizes.tolist())) < _CHANCE


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _area(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve of a number for a label, ties counting half."""
    ranks = pl.Series(values).rank("average").to_numpy()
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return 0.5
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
