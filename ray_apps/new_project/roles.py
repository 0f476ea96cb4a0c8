"""Roles of a table's columns: which one is the label, what identifies a row, when it was, and what the label is.

Each role is the user's choice or a guess with its reason, so that a person can judge and correct it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from toque.ray_apps.new_project.columns import ColumnSummary, Summaries, cleaned
from toque.ray_apps.new_project.errors import InitError
from toque.ray_apps.new_project.outcomes import Outcome, outcome_of, several_names, shape_of

ROW = "row"
"""Key of a table without one: the number of the row."""

_LABELS = ("label", "target", "outcome", "y", "class", "response")
_TIMES = ("event_timestamp", "timestamp", "time", "datetime", "date", "time_hour", "created_at", "created")
_KEY = re.compile(r"(^|_)(id|key|uuid|code|no|nr|number)$|id$", re.IGNORECASE)
_POSITIVE = ("1", "yes", "true", "y", "t", "positive", "malignant", "bad", "churned", "fraud", "1.0")
_GROUP = re.compile(r"^(qid|slate|query|request|search|srch)(_?id)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user has said. key, label, time, outcome, positive, group: roles; None or empty where it is to be guessed."""

    label: str | None = None
    key: tuple[str, ...] = ()
    time: str | None = None
    outcome: Outcome | None = None
    positive: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """One role with its value in words, and the reason for it."""

    role: str
    value: str
    reason: str
    option: str


@dataclass(frozen=True, slots=True)
class Roles:
    """Roles of the columns, by their names as identifiers.

    key: empty for the row's number; time: None where the table has none; classes: of the label, the second being the
    positive one of a binary label; group: of a ranking, the column of the requests, which is part of the key; separator: between
    the names in the text of several labels; guesses: the same in words.
    """

    label: str
    key: tuple[str, ...]
    time: str | None
    outcome: Outcome
    classes: tuple[str, ...] = ()
    group: str = ""
    separator: str = ""
    guesses: tuple[Guess, ...] = ()

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of the table that are in the key, with the request of a ranking."""
        request = (self.group,) if self.group and self.group not in self.key else ()
        return (*request, *self.key)

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns of the key, of which the row's number is one where the table names no row."""
        return self.key_columns if self.key else (*self.key_columns, ROW)

    @property
    def coded(self) -> bool:
        """Whether a binary label is written as 0 and 1 already."""
        return self.classes == ("0", "1")


def roles_of(table: pl.LazyFrame, found: Summaries, wishes: Wishes, missing: Sequence[str]) -> Roles:
    """Assign the roles of a table's columns. Raises: InitError if a name is unknown or the label cannot be one."""
    time, why_time = _time(found, wishes)
    group, why_group = _group(found, wishes)
    label, why_label = _label(found, wishes, {time, group, *wishes.key})
    shape = shape_of(table, found[label], missing)
    outcome, why_outcome = outcome_of(found[label], shape, wishes.outcome, group)
    group = group if outcome == "ranking" else ""
    key, why_key = _key(table, found, wishes, {label, time, group}, time)
    classes: tuple[str, ...] = ()
    if outcome in {"binary", "multiclass"}:
        classes = tuple(name for name, _ in class_counts(table, found[label], missing))
    if outcome == "binary":
        classes, why_positive = _positive(table, found[label], classes, wishes, missing)
        why_outcome = f"{why_outcome}; {why_positive}"
    guesses = (
        Guess("label", label, why_label, "--label"),
        Guess("outcome", outcome, why_outcome, "--outcome"),
        *((Guess("group", group, why_group, "--group"),) if group else ()),
        Guess("key", ", ".join(key) or f"{ROW} (the row's number)", why_key, "--key"),
        Guess("time", time or "none", why_time, "--time"),
    )
    separator = shape.separator if outcome == "multilabel" else ""
    return Roles(label, key, time, outcome, classes, group, separator, guesses)


def column_named(found: Summaries, name: str, option: str) -> ColumnSummary:
    """Find a column that an option names. Raises: InitError, naming those there are."""
    try:
        return found[name]
    except StopIteration:
        there = ", ".join(column.original for column in found.columns)
        raise InitError(f"{option} {name}: the table has no such column; it has {there}") from None


def _time(found: Summaries, wishes: Wishes) -> tuple[str | None, str]:
    if wishes.time == "none":
        return None, "as you said"
    if wishes.time:
        chosen = column_named(found, wishes.time, "--time")
        if chosen.kind != "time":
            raise InitError(
                f"--time {wishes.time}: its values are of kind {chosen.kind}, such as {chosen.examples[:1]}; "
                "write times as in 2024-05-01T12:00:00Z, or leave --time out"
            )
        return chosen.name, "as you said"
    times = [column for column in found.columns if column.kind == "time" and not column.missing]
    if not times:
        return None, "no column holds a time in every row; rows are taken to be known in no order"
    by_name = {column.name.lower(): column for column in times}
    named = next((by_name[name] for name in _TIMES if name in by_name), times[0])
    more = f"; {len(times) - 1} other columns hold times, too" if len(times) > 1 else ""
    return named.name, f"every row has a time in it{more}"


def _label(found: Summaries, wishes: Wishes, taken: set[str | None]) -> tuple[str, str]:
    if wishes.label:
        return column_named(found, wishes.label, "--label").name, "as you said"
    free = [column for column in found.columns if column.name not in taken and column.original not in taken]
    by_name = {column.name.lower(): column for column in free}
    for name in _LABELS:
        if name in by_name:
            return by_name[name].name, f"its name is {name}"
    usable = [column for column in free if column.kind != "time" and not column.constant]
    if not usable:
        raise InitError("no column can be the label; name the one to predict, as in --label price")
    return usable[-1].name, "the last column, for none is called label or target"


def _group(found: Summaries, wishes: Wishes) -> tuple[str, str]:
    """Find the column that names the request in which a row is an item; empty if there is none."""
    if wishes.group:
        return column_named(found, wishes.group, "--group").name, "as you said"
    for column in found.columns:
        several = column.distinct * 2 <= column.rows and not column.missing
        if _GROUP.search(column.name) and several and column.kind in {"integer", "text"}:
            return column.name, "its name is that of a request, and it has several rows"
    return "", ""


def class_counts(
    table: pl.LazyFrame, label: ColumnSummary, missing: Sequence[str], *, separator: str = ""
) -> list[tuple[str, int]]:
    """Count the rows of each class, in the order of their names; integers by value.

    separator: between the names of a text that has several; lists are counted by what they hold.
    """
    several = label.kind == "other"
    names = pl.col(label.original) if several else label_texts(table, label, missing)
    names = several_names(names, separator) if separator else names
    named = table.select(names.alias("name"))
    named = named.explode("name") if several or separator else named
    counted = named.drop_nulls().group_by("name").len().collect(engine="streaming")
    pairs = [(str(name), int(count)) for name, count in counted.iter_rows()]
    return sorted(pairs, key=lambda pair: (float(pair[0]), "") if label.numeric else (0.0, pair[0]))


def label_texts(table: pl.LazyFrame, label: ColumnSummary, missing: Sequence[str]) -> pl.Expr:
    """Expression of the label as text."""
    if table.collect_schema()[label.original] == pl.String:
        return cleaned(label.original, missing)
    return pl.col(label.original).cast(pl.String)


def _positive(
    table: pl.LazyFrame,
    label: ColumnSummary,
    classes: tuple[str, ...],
    wishes: Wishes,
    missing: Sequence[str],
) -> tuple[tuple[str, ...], str]:
    """Order two classes so that the positive one comes second."""
    if wishes.positive is not None:
        if wishes.positive not in classes:
            raise InitError(
                f"--positive {wishes.positive}: {label.original} has the values {', '.join(classes)}"
            )
        chosen, why = wishes.positive, "as you said"
    else:
        counts = dict(class_counts(table, label, missing))
        named = [name for name in classes if name.lower() in _POSITIVE]
        rare = min(classes, key=lambda name: (counts[name], name))
        chosen = named[0] if len(named) == 1 else rare
        why = "by its name" if len(named) == 1 else "the rarer one"
    other = next(name for name in classes if name != chosen)
    return (other, chosen), f"{chosen!r} counts as 1, {why} (--positive)"


def _key(
    table: pl.LazyFrame, found: Summaries, wishes: Wishes, taken: set[str | None], time: str | None
) -> tuple[tuple[str, ...], str]:
    if wishes.key == (ROW,) and ROW not in found.names:
        return (), "as you said"
    if wishes.key:
        return tuple(column_named(found, name, "--key").name for name in wishes.key), "as you said"
    usable = [
        column
        for column in found.columns
        if column.kind in {"integer", "text"} and not column.missing and column.name not in taken
    ]
    for column in usable:
        if _KEY.search(column.name) and _identifies(table, found, (column.name,), None):
            return (column.name,), "its name is that of a key, and no value comes twice"
    first = found.columns[0].name
    whole = {column.name for column in usable if column.kind == "integer"}
    if first in whole and _identifies(table, found, (first,), None):
        return (first,), "it stands first, and no value comes twice"
    if time is not None:
        for column in usable:
            likely = _KEY.search(column.name) or column.name == first
            if (
                likely
                and column.distinct * 2 <= column.rows
                and _identifies(table, found, (column.name,), time)
            ):
                return (column.name,), f"no value comes twice at one {time}"
    return (), "no column identifies a row"


def _identifies(table: pl.LazyFrame, found: Summaries, key: tuple[str, ...], time: str | None) -> bool:
    enough = found[key[0]].distinct >= (1 if time else 0.9 * found.rows)  # the number is an estimate
    return enough and not duplicates(table, found, key, time)[0]


def duplicates(
    table: pl.LazyFrame, found: Summaries, key: Sequence[str], time: str | None
) -> tuple[int, dict[str, Any]]:
    """Count the rows whose key, at its time, an earlier row has; with the first such key."""
    columns = [found[name].original for name in (*key, *((time,) if time else ()))]
    grouped = table.select(columns).group_by(columns).len().filter(pl.col("len") > 1)
    twice = grouped.select((pl.col("len") - 1).sum().alias("rows")).collect(engine="streaming").item()
    first = grouped.head(1).collect(engine="streaming").to_dicts()
    return int(twice or 0), {name: first[0][name] for name in columns} if first else {}
