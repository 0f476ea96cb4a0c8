"""Roles of a table's columns: which one is the label, what identifies a row, when it was, and what the label is.

Each role is the user's choice or a guess with its reason, so that a person can judge and correct it. What a label is,
its outcome, is guessed from its values, or the one that the user names is checked against them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.ray_apps.new_project.columns import ColumnSummary, Summaries, cleaned
from toque.ray_apps.new_project.source import InitError

Outcome = Literal["binary", "multiclass", "multilabel", "number", "count", "ranking", "vector"]
OUTCOMES: tuple[Outcome, ...] = (
    "binary",
    "multiclass",
    "multilabel",
    "number",
    "count",
    "ranking",
    "vector",
)
CLASSIFIED: frozenset[Outcome] = frozenset({"binary", "multiclass", "multilabel"})
"""Outcomes whose labels are names of classes."""
BY_NETWORK: dict[Outcome, str] = {"binary": "binary", "multiclass": "multiclass", "number": "regression"}
"""Outcomes that the tabular network learns, with its name for the task."""
MIN_CLASS_ROWS = 20
"""Rows that each class needs, so that it is among the rows to learn from and those to judge by."""
MOST_RELEVANT = 31

_TWO = 2
_FEW_INTEGERS = 15  # distinct integers up to which they are classes
_FEW_NAMES = 100
_SEPARATORS = "|;,"
_SEVERAL = 0.1  # share of texts with a separator from which on they are lists of names
_COUNT = re.compile(
    r"^(n|num|number)_|(^|_)(count|counts|cnt|quantity|visits|claims|arrivals)(_|$)", re.IGNORECASE
)
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
    _refuse_clash(found, time)
    _refuse_infinite(table, found[label], outcome)
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


def _refuse_clash(found: Summaries, time: str | None) -> None:
    """Refuse a column with the name of a row's time that is not it. Raises: InitError."""
    if EVENT_TIMESTAMP in found.names and time != EVENT_TIMESTAMP:
        raise InitError(
            f"column {EVENT_TIMESTAMP} is of kind {found[EVENT_TIMESTAMP].kind}, such as {found[EVENT_TIMESTAMP].examples[:1]}, and is not "
            f"the row's time, which is stored under that name; rename it in the table, or say --time {EVENT_TIMESTAMP} if it is"
        )


def _refuse_infinite(table: pl.LazyFrame, label: ColumnSummary, outcome: Outcome) -> None:
    """Refuse numbers to predict that are infinite, which no training takes. Raises: InitError."""
    if outcome not in {"number", "count"} or not label.numeric:
        return
    value = pl.col(label.original).cast(pl.Float64, strict=False)
    count = int(table.select(value.is_infinite().sum()).collect(engine="streaming").item() or 0)
    if count:
        raise InitError(
            f"--label {label.original}: {count} values are infinite, which cannot be learnt; leave these rows out, or correct them"
        )


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


@dataclass(frozen=True, slots=True)
class LabelShape:
    """Shape of a label's values beyond their kind.

    least, most: of integers; commonest: the integer that most rows have; lists: what lists hold, empty if there are none;
    length: of lists of numbers, 0 where it differs; separator: between the names of one text, empty where a text is one name;
    names: distinct names in lists and such texts.
    """

    least: int | None = None
    most: int | None = None
    commonest: int | None = None
    lists: Literal["", "names", "numbers"] = ""
    length: int = 0
    separator: str = ""
    names: int = 0


def shape_of(table: pl.LazyFrame, label: ColumnSummary, missing: Sequence[str]) -> LabelShape:
    """Look at all values of a label once more, in a pass over its column alone."""
    kind = table.collect_schema()[label.original]
    if isinstance(kind, pl.List | pl.Array):
        lists = table.select(pl.col(label.original).cast(pl.List(kind.inner)).alias("value"))
        if kind.inner == pl.String:
            return LabelShape(lists="names", names=_distinct_names(lists))
        return LabelShape(lists="numbers", length=_length(lists)) if kind.inner.is_numeric() else LabelShape()
    if label.kind == "integer":
        column = cleaned(label.original, missing) if kind == pl.String else pl.col(label.original)
        return _of_integers(table.select(column.cast(pl.Int64).alias("value")))
    if label.kind == "text" and kind == pl.String:
        return _of_texts(table.select(cleaned(label.original, missing).alias("value")), label)
    return LabelShape()


def outcome_of(
    label: ColumnSummary, shape: LabelShape, wished: Outcome | None, group: str
) -> tuple[Outcome, str]:
    """Guess the outcome of a label with the reason, or take the one that the user names.

    group: column of the requests in which a row is an item, empty if there is none.
    Raises: InitError if the label cannot be learnt, or not as the user says.
    """
    unusable = label.kind in {"time", "empty"} or (label.kind == "other" and not shape.lists)
    if unusable or (not shape.lists and label.distinct < _TWO):
        raise InitError(
            f"the label {label.original} cannot be learnt: it is of kind {label.kind} with {label.distinct} distinct "
            "values; name another column by --label"
        )
    if wished is None:
        return _guessed(label, shape, group)
    wrong = _misfit(label, shape, wished, group)
    if wrong:
        raise InitError(f"--outcome {wished}: {label.original} {wrong}")
    return wished, "as you said"


def several_names(column: pl.Expr, separator: str) -> pl.Expr:
    """Expression of the names in a text, without spaces around them and without empty ones."""
    names = column.str.split(separator).list.eval(pl.element().str.strip_chars())
    return names.list.eval(pl.element().filter(pl.element() != ""))


def _length(lists: pl.LazyFrame) -> int:
    """Length of all lists; 0 if it differs."""
    lengths = lists.select(pl.col("value").drop_nulls().list.len().unique()).collect(engine="streaming")
    return int(lengths["value"][0]) if len(lengths) == 1 else 0


def _of_integers(values: pl.LazyFrame) -> LabelShape:
    value = pl.col("value").drop_nulls()
    asked = [value.min().alias("least"), value.max().alias("most"), value.mode().min().alias("commonest")]
    return LabelShape(**values.select(asked).collect(engine="streaming").row(0, named=True))


def _of_texts(values: pl.LazyFrame, label: ColumnSummary) -> LabelShape:
    """Find the separator by which many texts are several of a few names that come again in other texts."""
    several = [pl.col("value").str.contains(each, literal=True).sum().alias(each) for each in _SEPARATORS]
    counted = values.select(several).collect(engine="streaming").row(0, named=True)
    separator = max(_SEPARATORS, key=lambda each: counted[each])
    if counted[separator] < max(1, _SEVERAL * label.rows):
        return LabelShape()
    names = _distinct_names(values.select(several_names(pl.col("value"), separator).alias("value")))
    return LabelShape(separator=separator, names=names) if names < label.distinct else LabelShape()


def _distinct_names(lists: pl.LazyFrame) -> int:
    exploded = lists.select(pl.col("value").explode().drop_nulls().n_unique())
    return int(exploded.collect(engine="streaming").item())


def _guessed(label: ColumnSummary, shape: LabelShape, group: str) -> tuple[Outcome, str]:
    if shape.lists == "numbers" and shape.length:
        return "vector", f"it is a list of {shape.length} numbers in every row"
    if shape.lists == "names" or (shape.separator and shape.names <= _FEW_NAMES):
        between = f", by {shape.separator!r}" if shape.separator else ""
        return "multilabel", f"a row has several of {shape.names} names{between}"
    if group and not _misfit(label, shape, "ranking", group):
        return "ranking", f"rows are items of requests, named by {group}"
    if label.distinct == _TWO:
        return "binary", "it has two values"
    counted = _counted(label, shape)
    return ("count", f"whole numbers from 0 on, {counted}") if counted else _class_or_number(label, shape)


def _counted(label: ColumnSummary, shape: LabelShape) -> str:
    """Say why whole numbers are likely counts; empty if they are not."""
    if shape.least is None or shape.least < 0:
        return ""
    if _COUNT.search(label.name):
        return "and its name is that of a count"
    common = label.distinct > _FEW_INTEGERS and shape.commonest in {0, 1}
    return f"of which {shape.commonest} is the commonest" if common else ""


def _class_or_number(label: ColumnSummary, shape: LabelShape) -> tuple[Outcome, str]:
    few = label.distinct <= _FEW_INTEGERS and label.rows >= label.distinct * MIN_CLASS_ROWS
    if label.kind == "integer" and few:
        return "multiclass", f"it has {label.distinct} integers, few enough to be classes"
    if label.numeric:
        return "number", f"it has about {label.distinct:,} numbers"
    if not shape.lists and label.distinct <= _FEW_NAMES:
        return "multiclass", f"it has {label.distinct} texts"
    texts = f"about {label.distinct:,} distinct texts, more than {_FEW_NAMES}"
    holds = "lists of several lengths" if shape.lists else texts
    raise InitError(f"the label {label.original} has {holds}: name another column by --label")


def _misfit(label: ColumnSummary, shape: LabelShape, wished: Outcome, group: str) -> str:
    """Say why a label is not of an outcome, with the remedy; empty if it is."""
    such = f"holds {label.kind} values such as {label.examples[:1]}"
    such = f"holds lists of {shape.lists}" if shape.lists else such
    whole = shape.least is not None and shape.least >= 0
    found: dict[Outcome, tuple[bool, str]] = {
        "number": (label.numeric, such),
        "binary": (
            not shape.lists and label.distinct == _TWO,
            such if shape.lists else f"has {label.distinct} distinct values, not two",
        ),
        "multiclass": (not shape.lists, f"{such}: several classes a row are --outcome multilabel"),
        "multilabel": (
            bool(shape.separator) or shape.lists == "names",
            f"{such}: write several names as in 'rain|wind', or as a list of texts in Parquet",
        ),
        "vector": (
            shape.lists == "numbers" and shape.length > 0,
            f"{such}: a vector is a list of as many numbers in every row, in Parquet",
        ),
        "count": (whole, f"{such}: counts are whole numbers from 0 on"),
        "ranking": (
            whole and bool(group) and (shape.most or 0) <= MOST_RELEVANT,
            f"{such}: a relevance is a whole number from 0 to {MOST_RELEVANT}"
            if group
            else "is ranked within requests, and no column is called qid, query or request: name it by --group",
        ),
    }
    fits, why = found[wished]
    return "" if fits else why
