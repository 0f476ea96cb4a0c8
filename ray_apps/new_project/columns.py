"""Summaries of a table's columns: what kind of values each holds, how many, and what does not fit.

Everything is counted in one pass over the scanned table, whose rows are never all in memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

ColumnKind = Literal["integer", "number", "flag", "text", "time", "mixed", "empty", "other"]
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?")
"""Words that stand for a missing value where the user names no others."""
NUMERIC: frozenset[ColumnKind] = frozenset({"integer", "number"})

_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%d %H:%M:%S%#z",
    "%Y-%m-%dT%H:%M:%S%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M:%S",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m/%d/%Y %H:%M",
    "%Y/%m/%d",
    "%Y%m%d",
)
_HEAD = 2_000  # rows from which the format of a time is guessed
_MOSTLY = 0.9  # share of numbers from which on a column is one of numbers with dirt in it
_EXAMPLES = 3
_MANY = 5_000  # distinct values from which on their number is estimated
_NAME = re.compile(r"[^A-Za-z0-9]+")
_LATIN = re.compile(r"LATIN (SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH|$)")


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """Summary of what one column holds.

    original: its name in the source; name: the same as an identifier; rows: with a value; missing: without one; words: the
    words for a missing value that occur; distinct: about how many values; examples: the first few; misfits: values that are
    no number, in a column mostly of numbers; padded: values with spaces around them; zeros: integers that begin with 0;
    format: of a time, empty where it is stored as one; zoned: whether its values name a zone.
    """

    original: str
    name: str
    kind: ColumnKind
    rows: int
    missing: int
    distinct: int
    examples: tuple[Any, ...] = ()
    words: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    misfit_count: int = 0
    numbers: int = 0
    padded: int = 0
    zeros: int = 0
    format: str = ""
    zoned: bool = False

    @property
    def numeric(self) -> bool:
        """Whether the column holds numbers."""
        return self.kind in NUMERIC

    @property
    def constant(self) -> bool:
        """Whether every row has the same value, or none has one."""
        return self.kind == "empty" or (self.distinct == 1 and self.missing == 0)


@dataclass(frozen=True, slots=True)
class Summaries:
    """Summaries of all columns, and the number of rows. texts: whether the source holds texts only."""

    rows: int
    texts: bool
    columns: tuple[ColumnSummary, ...] = field(default_factory=tuple)

    def __getitem__(self, name: str) -> ColumnSummary:
        return next(column for column in self.columns if name in {column.name, column.original})

    @property
    def names(self) -> list[str]:
        """Names of the columns, as identifiers."""
        return [column.name for column in self.columns]

    @property
    def words(self) -> list[str]:
        """Words for a missing value that occur anywhere."""
        return sorted({word for column in self.columns for word in column.words})

    @property
    def padded(self) -> bool:
        """Whether values have spaces around them."""
        return any(column.padded for column in self.columns)


def identifier(name: str, taken: Collection[str]) -> str:
    """Make a name of letters, digits and underscores out of a column's, other than those that are taken."""
    made = _NAME.sub("_", _without_accents(name)).strip("_") or "column"
    made = made if made[0].isalpha() else f"c_{made}"
    found, number = made, 2
    while found in taken:
        found, number = f"{made}_{number}", number + 1
    return found


def _without_accents(name: str) -> str:
    """Spell the letters of Latin alphabets in ASCII: é as e, Ł as L, æ as ae; others stay."""
    letters = []
    for letter in unicodedata.normalize("NFKD", name):
        latin = _LATIN.match(unicodedata.name(letter, ""))
        if latin is not None:
            letter = latin[2] if latin[1] == "CAPITAL" else latin[2].lower()  # noqa: PLW2901  # the same letter
        letters.append("" if unicodedata.combining(letter[0]) else letter)
    return "".join(letters)


def summarize(
    table: pl.LazyFrame, *, as_text: Collection[str] = (), missing: Sequence[str] = MISSING
) -> Summaries:
    """Summarize every column of a table. as_text: columns that are texts, whatever they look like; missing: words for no value."""
    schema = table.collect_schema()
    taken = {"event_timestamp", "created_timestamp", "event_day", "label_known_at"}
    named: dict[str, str] = {}
    for name in schema:
        named[name] = identifier(name, taken) if name != "event_timestamp" else name
        taken.add(named[name])
    head = table.head(_HEAD).collect()
    formats = {
        name: _format(head[name], missing)
        for name, kind in schema.items()
        if kind == pl.String and name not in as_text
    }
    asked = [pl.len().alias("rows")]
    for at, (name, kind) in enumerate(schema.items()):
        asked += _counts(at, name, kind, formats.get(name), missing)
    counted = table.select(asked).collect(engine="streaming").row(0, named=True)
    counted |= _exact_distinct(table, list(schema.items()), counted, missing)
    made = [
        _summary(
            at,
            name,
            named[name],
            kind,
            counted,
            formats.get(name),
            text=name in as_text or named[name] in as_text,
        )
        for at, (name, kind) in enumerate(schema.items())
    ]
    return Summaries(counted["rows"], all(kind == pl.String for kind in schema.values()), tuple(made))


def cleaned(name: str, missing: Sequence[str]) -> pl.Expr:
    """Expression of a column of texts without spaces around them, words for a missing value being null."""
    text = pl.col(name).str.strip_chars()
    return pl.when(text.is_in(list(missing))).then(None).otherwise(text)


def _format(values: pl.Series, missing: Sequence[str]) -> str | None:
    """Format in which every value of a column's first rows is a time."""
    texts = values.str.strip_chars()
    texts = texts.filter(~texts.is_in(list(missing))).drop_nulls()
    if texts.is_empty() or not texts.str.contains(r"\d{4}|\d{1,2}[./]\d{1,2}").all():
        return None
    if texts.str.contains(r"^-?\d+(\.\d+)?$").all() and not texts.str.contains(r"^(19|20)\d{6}$").all():
        return None
    return next((form for form in _FORMATS if _parsed(pl.lit(texts), form, len(texts))), None)


def _parsed(column: pl.Expr, form: str, rows: int) -> bool:
    found = pl.select(_time(column, form).is_not_null().sum()).item()
    return bool(found == rows)


def _time(text: pl.Expr, form: str) -> pl.Expr:
    return text.str.to_datetime(form, time_unit="us", strict=False)


def _counts(at: int, name: str, kind: pl.DataType, form: str | None, missing: Sequence[str]) -> list[pl.Expr]:
    """Expressions that count what a column holds, named by its place."""
    if isinstance(kind, pl.List | pl.Array | pl.Struct | pl.Binary | pl.Object):
        return [pl.col(name).is_not_null().sum().alias(f"{at}.values")]
    if kind != pl.String:
        column = pl.col(name)
        distinct = column.drop_nulls().approx_n_unique() if not isinstance(kind, pl.Null) else pl.lit(0)
        return [
            column.is_not_null().sum().alias(f"{at}.values"),
            distinct.alias(f"{at}.distinct"),
            column.drop_nulls().head(_EXAMPLES).implode().alias(f"{at}.examples"),
        ]
    raw, clean = pl.col(name), cleaned(name, missing)
    number = clean.cast(pl.Float64, strict=False).is_not_null() & clean.is_not_null()
    misfit = clean.filter(~number & clean.is_not_null())
    asked = {
        "values": clean.is_not_null().sum(),
        "distinct": clean.drop_nulls().approx_n_unique(),
        "examples": clean.drop_nulls().head(_EXAMPLES).implode(),
        "padded": (raw != raw.str.strip_chars()).sum(),
        "integers": clean.cast(pl.Int64, strict=False).is_not_null().sum(),
        "numbers": number.sum(),
        "flags": clean.str.to_lowercase().is_in(["true", "false"]).sum(),
        "zeros": clean.str.contains(r"^-?0\d").sum(),
        "misfits": misfit.head(_EXAMPLES).implode(),
        "words": raw.str.strip_chars().filter(raw.str.strip_chars().is_in(list(missing))).unique().implode(),
    }
    if form is not None:
        asked["times"] = _time(clean, form).is_not_null().sum()
    return [expression.alias(f"{at}.{what}") for what, expression in asked.items()]


def _exact_distinct(
    table: pl.LazyFrame,
    columns: list[tuple[str, pl.DataType]],
    counted: dict[str, Any],
    missing: Sequence[str],
) -> dict[str, Any]:
    """Count exactly how many values columns of few have; the rest stays an estimate, whose memory is bounded."""
    asked = [
        (cleaned(name, missing) if kind == pl.String else pl.col(name))
        .drop_nulls()
        .n_unique()
        .alias(f"{at}.distinct")
        for at, (name, kind) in enumerate(columns)
        if counted.get(f"{at}.distinct", _MANY) < _MANY
    ]
    return table.select(asked).collect(engine="streaming").row(0, named=True) if asked else {}


def _summary(
    at: int, original: str, name: str, kind: Any, counted: dict[str, Any], form: str | None, *, text: bool
) -> ColumnSummary:
    def of(what: str, otherwise: Any = 0) -> Any:
        found = counted.get(f"{at}.{what}")
        return otherwise if found is None else found

    values, rows = of("values"), counted["rows"]
    common = {
        "original": original,
        "name": name,
        "rows": values,
        "missing": rows - values,
        "distinct": min(of("distinct"), values),
        "examples": tuple(of("examples", ())),
    }
    if kind != pl.String:
        zoned = isinstance(kind, pl.Datetime) and kind.time_zone is not None
        return ColumnSummary(kind=_typed_kind(kind, values), zoned=zoned, **common)
    misfits = values - of("numbers")
    found = _text_kind(values, of, form=form, text=text)
    return ColumnSummary(
        kind=found,
        words=tuple(of("words", ())),
        misfits=tuple(of("misfits", ())),
        misfit_count=misfits,
        numbers=of("numbers"),
        padded=of("padded"),
        zeros=of("zeros"),
        format=form or "" if found == "time" else "",
        zoned=found == "time" and form is not None and form.endswith(("z", "Z")),
        **common,
    )


def _text_kind(values: int, of: Any, *, form: str | None, text: bool) -> ColumnKind:
    """Kind of a column whose values are texts."""
    if values == 0 or text:
        return "text" if values else "empty"
    if form is not None and of("times") == values:
        return "time"
    if of("numbers") == values:
        if of("zeros"):
            return "text"  # a code, as in 00501
        return "integer" if of("integers") == values else "number"
    if of("flags") == values:
        return "flag"
    return "mixed" if of("numbers") / values >= _MOSTLY else "text"


def _typed_kind(kind: pl.DataType, values: int) -> ColumnKind:
    """Kind of a column that the source has typed."""
    if values == 0:
        return "empty"
    if kind.is_integer():
        return "integer"
    if kind.is_numeric():
        return "number"
    if kind == pl.Boolean:
        return "flag"
    if isinstance(kind, pl.Datetime | pl.Date):
        return "time"
    return "text" if isinstance(kind, pl.Categorical | pl.Enum) else "other"
