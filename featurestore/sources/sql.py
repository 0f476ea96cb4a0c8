"""Reader of a database by ADBC: the rows of a query beyond the greatest value of a column that was read before.

Drivers are packages of their own: `adbc-driver-sqlite`, `adbc-driver-postgresql`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from importlib import import_module
from typing import Any

import pyarrow as pa

from featurestore.definitions.batch_source import Piece, Position, Secrets
from featurestore.errors import InvalidDefinition, UnreadableSource

_DRIVERS = {
    "sqlite": "adbc_driver_sqlite.dbapi",
    "postgresql": "adbc_driver_postgresql.dbapi",
    "postgres": "adbc_driver_postgresql.dbapi",
}
_PARAMETER = {"postgresql": "${}", "postgres": "${}"}


@dataclass(frozen=True, slots=True)
class SqlTable:
    """Rows of a table or a query, read on by a column whose values only grow.

    uri: `sqlite:///file`, `postgresql://…`, or `$NAME`, a secret with such a uri in it.
    table: name of a table, or a query in parentheses. watermark: its column; a row counts as new if it is beyond the greatest
    value that was read before, so rows must not come in with a smaller one later.
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

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {"type": "sql", "uri": self.uri, "table": self.table, "watermark": self.watermark}

    def pieces(self, after: Position, columns: Sequence[str], secrets: Secrets) -> Iterator[Piece]:
        """Find the rows beyond the watermark, up to its greatest value now. Raises: UnreadableSource."""
        uri = secrets(self.uri[1:]) if self.uri.startswith("$") else self.uri
        known = after.get("watermark")
        (newest,) = self._one(uri, f'SELECT max("{self.watermark}") FROM {self._rows}')  # noqa: S608  # declared by its owner
        if newest is None or newest == _value(known):
            if newest is None and known is not None:
                raise UnreadableSource(
                    f"{self.table}: column {self.watermark!r} was read up to {known['value']}, and no row is left; nothing is loaded"
                )
            return
        if known is not None and newest < _value(known):
            raise UnreadableSource(
                f"{self.table}: column {self.watermark!r} went back from {known['value']} to {newest}; nothing is loaded until it "
                "is beyond that again. If the table was made anew, load it under another name"
            )
        position = {"watermark": _json(newest)}
        name = f"{self.watermark} up to {newest}" + (f" after {known['value']}" if known else "")
        yield Piece(name, position, partial(self._read, uri, list(columns), _value(known), newest))

    @property
    def _rows(self) -> str:
        return f"{self.table} AS source" if self.table.startswith("(") else self.table

    def _read(self, uri: str, columns: list[str], after: Any, until: Any) -> Iterator[pa.Table]:
        mark = _PARAMETER.get(_scheme(uri), "?")
        names = ", ".join(f'"{each}"' for each in columns)
        where = f'"{self.watermark}" <= {mark.format(1)}'
        given = [until]
        if after is not None:
            where += f' AND "{self.watermark}" > {mark.format(2)}'
            given.append(after)
        query = f"SELECT {names} FROM {self._rows} WHERE {where}"  # noqa: S608  # as above
        try:
            with closing(_connected(uri)) as connection, closing(connection.cursor()) as cursor:
                cursor.execute(query, parameters=given)
                for batch in cursor.fetch_record_batch():
                    yield pa.Table.from_batches([batch])
        except UnreadableSource:
            raise
        except Exception as error:
            raise UnreadableSource(f"{self.table} cannot be read: {error}") from error

    def _one(self, uri: str, query: str) -> tuple[Any, ...]:
        try:
            with closing(_connected(uri)) as connection, closing(connection.cursor()) as cursor:
                cursor.execute(query)
                return tuple(cursor.fetchone())
        except UnreadableSource:
            raise
        except Exception as error:
            raise UnreadableSource(f"{self.table} cannot be read: {error}") from error


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
    try:
        driver: Any = import_module(_DRIVERS[scheme])
    except ImportError as error:
        package = _DRIVERS[scheme].partition(".")[0].replace("_", "-")
        raise UnreadableSource(f"a {scheme} source needs a driver: pip install {package}") from error
    return driver.connect(uri.partition("://")[2].removeprefix("/") if scheme == "sqlite" else uri)


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
