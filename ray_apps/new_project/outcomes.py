"""Guess of what a label is: the outcome that its values look like, or a check that the one the user names fits them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from toque.ray_apps.new_project.columns import ColumnSummary, cleaned
from toque.ray_apps.new_project.errors import InitError

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
