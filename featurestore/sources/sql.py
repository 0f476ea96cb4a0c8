"""Reader of a database by ADBC: the rows of a query beyond the greatest value of a column that was read before.

Drivers are packages of their own: `adbc-driver-postgresql`, and `duckdb`, which brings its own. SQLite is read by Python's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from toque.featurestore.definitions.batch_source import (
    UNMARKED,
    Piece,
    Position,
    Secrets,
    TimeRange,
    revealed,
    secrets_in,
)
from toque.featurestore.errors import InvalidDefinition, UnreadableSource

_DRIVERS = {
    "sqlite": ("sqlite3", "sqlite3"),
    "duckdb": ("adbc_driver_duckdb", "duckdb adbc-driver-manager"),
    "postgresql": ("adbc_driver_postgresql.dbapi", "adbc-driver-postgresql"),
    "postgres": ("adbc_driver_postgresql.dbapi", "adbc-driver-postgresql"),
}
"""Module and packages of the driver, by the scheme of a uri."""
_BLOCK_ROWS = 65_536
_HASHED_ROWS = 1_000  # with the last watermark: a load records the hash of each
_UNMARKED = ":unmarked"  # key in a position of the number of rows without a watermark
_PARAMETER = {"postgresql": "${}", "postgres": "${}"}


@dataclass(frozen=True, slots=True)
class SqlTable:
    """Rows of a table or a query, read on by a column whose values only grow.

    uri: `sqlite:///file`, `duckdb:///file`, `postgresql://…`, or `$NAME`, a secret with such a uri in it.
    table: name of a table, or a query in parentheses. watermark: its column; a row counts as new if it is beyond the greatest
    value that was read before, or has that one and is not stored, so rows must not come in with a smaller one later.
    Raises: InvalidDefinition.
    """

    uri: str
    table: str
    watermark: str

    def __post_init__(self) -> None:
        if not self.uri.startswith("$"):
            _scheme(self.uri)
            if re.search(r"://[^/]*:[^/]*@", self.uri):
                raise InvalidDefinition(
                    "SqlTable: uri holds a password; name a secret that holds the uri, as uri='$WAREHOUSE_URL'"
                )
        if not self.table.startswith("(") and not re.fullmatch(r"[A-Za-z_][\w.]*", self.table):
            raise InvalidDefinition(
                f"SqlTable: table {self.table!r} is no name; put a query into parentheses"
            )

    @property
    def secret_names(self) -> list[str]:
        """Names of the secrets that the uri takes: itself, or none."""
        return secrets_in(self.uri)

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {"type": "sql", "uri": self.uri, "table": self.table, "watermark": self.watermark}

    def pieces(
        self, after: Position, columns: Sequence[str], secrets: Secrets, within: TimeRange | None = None
    ) -> Iterator[Piece]:
        """Find the rows beyond the watermark, up to its greatest value now. Raises: UnreadableSource."""
        uri = revealed(self.uri, secrets)
        known = after.get("watermark")
        newest, unmarked = self._one(
            uri,
            f'SELECT max("{self.watermark}"), count(*) - count("{self.watermark}") FROM {self._rows}',  # noqa: S608  # declared by its owner
        )
        if unmarked and unmarked != after.get(_UNMARKED):
            yield self._unmarked_rows(uri, columns, unmarked)
        if newest is None:
            if known is not None:
                raise UnreadableSource(
                    f"{self.table}: column {self.watermark!r} was read up to {known['value']}, and no row is left; nothing is loaded"
                )
            return
        if isinstance(newest, float | Decimal) and not math.isfinite(newest):
            raise UnreadableSource(
                f"{self.table}: column {self.watermark!r} is {newest} in a row, beyond which no other comes; correct that row, or "
                "leave it out by a query in parentheses as `table`"
            )
        if known is not None and not _comparable(newest, _value(known)):
            raise UnreadableSource(
                f"{self.table}: column {self.watermark!r} is {newest!r} now, and {known['value']!r} was read before: values of two "
                "types have no order; correct the rows, or cast the column in a query in parentheses as `table`"
            )
        if known is not None and newest < _value(known):
            raise UnreadableSource(
                f"{self.table}: column {self.watermark!r} went back from {known['value']} to {newest}; nothing is loaded until it "
                "is beyond that again. If the table was made anew, load it under another name"
            )
        position = {"watermark": _json(newest) | self._rows_at(uri, newest, columns)}
        if known is not None:  # others may have come with the last value since it was read
            same: list[_Limit] = [("=", self.watermark, _value(known))]
            more = _come(known, self._rows_at(uri, _value(known), columns))
            read = partial(self._read, uri, list(columns), same, within)
            at = {"watermark": known} if newest != _value(known) else position
            yield Piece(f"{self.watermark} of {known['value']}", at, read, again=True, more=more)
        if known is None or newest != _value(known):
            name = f"{self.watermark} up to {newest}" + (f" after {known['value']}" if known else "")
            limits = [("<=", self.watermark, newest)]
            limits += [] if known is None else [(">", self.watermark, _value(known))]
            yield Piece(name, position, partial(self._read, uri, list(columns), limits, within))

    def _unmarked_rows(self, uri: str, columns: Sequence[str], count: int) -> Piece:
        """Name the rows that no load comes to, as they have no watermark."""
        torn: list[str] = []

        def read() -> Iterator[pa.Table]:
            for rows in self._read(uri, list(columns), [("IS", self.watermark, None)], None):
                torn.extend(json.dumps(row, default=str, ensure_ascii=False) for row in rows.to_pylist())
            yield from ()

        reason = f"column {self.watermark!r} {UNMARKED}"
        return Piece(f"{self.watermark} of none", {_UNMARKED: count}, read, torn, tears=reason)

    def _rows_at(self, uri: str, value: Any, columns: Sequence[str]) -> dict[str, Any]:
        """Describe the rows of one value of the watermark: their number, and of few the hash of each."""
        mark = _PARAMETER.get(_scheme(uri), "?").format(1)
        query = f'SELECT count(*) FROM {self._rows} WHERE "{self.watermark}" = {mark}'  # noqa: S608  # as above
        count = int(self._one(uri, query, [value])[0])
        if count > _HASHED_ROWS:
            return {"rows": count}
        read = self._read(uri, list(columns), [("=", self.watermark, value)], None)
        hashes = sorted(_hash(row) for rows in read for row in rows.to_pylist())
        return {"rows": len(hashes), "hashes": hashes, "columns": list(columns)}

    @property
    def _rows(self) -> str:
        return f"{self.table} AS source" if self.table.startswith("(") else self.table

    def _read(
        self, uri: str, columns: list[str], limits: list[_Limit], within: TimeRange | None
    ) -> Iterator[pa.Table]:
        """Read rows within limits by the watermark, so that of corrected rows the last comes last."""
        mark = _PARAMETER.get(_scheme(uri), "?")
        names = ", ".join(f'"{each}"' for each in columns)
        with self._cursor(uri) as cursor:
            if within is not None and _scheme(uri) != "sqlite":
                cursor.execute(f'SELECT "{within.column}" FROM {self._rows} WHERE 1 = 0')  # noqa: S608  # as above
                limits = [*limits, *_of_times(within, cursor.fetch_record_batch().schema.field(0).type)]
            where = " AND ".join(
                f'"{column}" IS NULL' if value is None else f'"{column}" {sign} {mark.format(number)}'
                for number, (sign, column, value) in enumerate(limits, start=1)
            )
            query = f'SELECT {names} FROM {self._rows} WHERE {where} ORDER BY "{self.watermark}"'  # noqa: S608
            cursor.execute(query, [value for _, _, value in limits if value is not None])
            yield from _blocks(cursor, columns) if _scheme(uri) == "sqlite" else _batches(cursor)

    def _one(self, uri: str, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        with self._cursor(uri) as cursor:
            cursor.execute(query, list(parameters))
            return tuple(cursor.fetchone())

    @contextmanager
    def _cursor(self, uri: str) -> Iterator[Any]:
        """Connect to the database, and translate what its driver raises. Raises: UnreadableSource."""
        try:
            with closing(_connected(uri)) as connection, closing(connection.cursor()) as cursor:
                yield cursor
        except UnreadableSource:
            raise
        except Exception as error:
            raise UnreadableSource(f"{self.table} cannot be read: {error}") from error


_Limit = tuple[str, str, Any]
"""Comparison in a query: its sign, the column, and the value."""


def _come(known: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """Count the rows of a watermark that were not there when it was read: by their hashes, or by their number."""
    if "hashes" in known and known["columns"] == now.get("columns"):
        return (Counter(now["hashes"]) - Counter(known["hashes"])).total()
    return int(now["rows"]) - int(known.get("rows", now["rows"]))


def _comparable(value: Any, other: Any) -> bool:
    try:
        return isinstance(value < other, bool)
    except TypeError:
        return False


def _hash(row: Mapping[str, Any]) -> str:
    return hashlib.blake2b(repr(row).encode(errors="replace"), digest_size=8).hexdigest()


def _batches(cursor: Any) -> Iterator[pa.Table]:
    """Read what a query gives batch by batch."""
    for batch in cursor.fetch_record_batch():
        yield pa.Table.from_batches([batch])


def _blocks(cursor: sqlite3.Cursor, columns: list[str]) -> Iterator[pa.Table]:
    """Read what a query gives in blocks, each of its own types: a column of SQLite may have values of several."""
    while rows := cursor.fetchmany(_BLOCK_ROWS):
        yield pa.table([_column(list(values)) for values in zip(*rows, strict=True)], names=columns)


def _column(values: list[Any]) -> pa.Array:
    """Make a column of one type: numbers and texts that are mixed are texts, which are read as what is declared."""
    kinds = {type(each) for each in values if each is not None}
    if len(kinds) <= 1:
        return pa.array(values)
    return pa.array([each if each is None or isinstance(each, str) else _text(each) for each in values])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else repr(value)


def _of_times(within: TimeRange, dtype: pa.DataType) -> list[_Limit]:
    """Limit a query to times where their type lets a database compare them."""
    if not pa.types.is_timestamp(dtype):
        return []
    low, high = within.bounds(has_zone=dtype.tz is not None)
    return [(">=", within.column, low), ("<=", within.column, high)]


def _scheme(uri: str) -> str:
    scheme = uri.partition(":")[0]
    if scheme not in _DRIVERS:
        raise InvalidDefinition(
            f"SqlTable: uri {uri.partition('@')[2] or uri!r} begins with none of {sorted(_DRIVERS)}"
        )
    return scheme


def _connected(uri: str) -> Any:
    """Connect by the driver of a uri's scheme. Raises: UnreadableSource if it is not installed."""
    scheme = _scheme(uri)
    path = uri.partition("://")[2].removeprefix("/")
    if (
        scheme == "sqlite"
    ):  # ADBC takes the type of a column from its first rows, and later ones may be of another
        return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
    module, package = _DRIVERS[scheme]
    try:
        driver: Any = import_module(module)
    except ImportError as error:
        raise UnreadableSource(f"a {scheme} source needs a driver: pip install {package}") from error
    if scheme == "duckdb":  # read only, or it would make a file that is not there
        manager: Any = import_module("adbc_driver_manager.dbapi")
        options = {"path": path, "access_mode": "read_only"}
        return manager.connect(driver=driver.driver_path(), entrypoint="duckdb_adbc_init", db_kwargs=options)
    return driver.connect(uri)


def _json(value: Any) -> dict[str, Any]:
    """Keep a watermark as JSON, with its type, so that it compares as it did."""
    if isinstance(value, datetime | date):
        return {"type": "datetime" if isinstance(value, datetime) else "date", "value": value.isoformat()}
    if isinstance(value, Decimal):
        return {"type": "decimal", "value": str(value)}
    if isinstance(value, int | float | str):
        return {"type": "plain", "value": value}
    raise UnreadableSource(
        f"a watermark of type {type(value).__name__} is not known; use numbers, times or texts"
    )


def _value(kept: dict[str, Any] | None) -> Any:
    if kept is None:
        return None
    read: dict[str, Callable[[str], Any]] = {
        "datetime": datetime.fromisoformat,
        "date": date.fromisoformat,
        "decimal": Decimal,
    }
    value = kept["value"]
    return read[kept["type"]](value) if kept["type"] in read else value
