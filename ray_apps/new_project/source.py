"""Sources of a project's table: a CSV or Parquet file, or a query of an SQLite database; and findings of its checks.

A source is scanned in batches and never held whole. A CSV file is first read as bytes, so that what would make a reader
stumble (a wrong encoding, ragged rows, no header) is told with its line. A finding says what is odd, where, how often,
with an example, and what is or must be done.
"""

from __future__ import annotations

import codecs
import csv
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

Kind = Literal["csv", "parquet", "sqlite"]
_KINDS: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
}
_SQLITE_URL = "sqlite:///"
_SEPARATORS = ",;\t|"
_CHUNK = 1 << 20
_ROWS = 50_000  # of a query's answer that are held at once
_EXAMPLE = 40  # characters of a value that are shown


@dataclass(frozen=True, slots=True)
class Source:
    """Place of a table and how it is read.

    path: of the file or database; query: of a database; separator, encoding: of a CSV file.
    """

    kind: Kind
    path: Path
    query: str = ""
    separator: str = ","
    encoding: str = "utf-8"

    @classmethod
    def of(cls, place: str, *, query: str = "", encoding: str = "utf-8") -> Source:
        """Find out what is at `place`, a path or an `sqlite:///` URL. Raises: InitError."""
        if "://" in place and not place.startswith(_SQLITE_URL):
            raise InitError(
                f"{place}: files and sqlite:///FILE are read; export the query's answer to Parquet and give that"
            )
        path = Path(place.removeprefix(_SQLITE_URL)).expanduser().resolve()
        if not path.is_file():
            raise InitError(f"there is no file {path}; give the path of a CSV, Parquet or SQLite file")
        kind: Kind | None = "sqlite" if place.startswith(_SQLITE_URL) else _KINDS.get(path.suffix.lower())
        if kind is None:
            raise InitError(f"{path.name} ends in none of {', '.join(_KINDS)}; rename or convert it")
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise InitError(f"--encoding {encoding}: Python knows no such encoding; try cp1252") from error
        if kind == "sqlite":
            return cls(kind, path, query or _only_table(path))
        separator = _separator(path, encoding) if kind == "csv" else ","
        return cls(kind, path, "", separator, encoding)

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return self.path.name

    @property
    def one_line_a_row(self) -> bool:
        """Whether no value holds the end of a line, nor a byte order mark stands first, which readers of lines need."""
        if self.kind != "csv":
            return True
        with self.path.open("rb") as file:
            marked = file.read(3) == codecs.BOM_UTF8
        with self.path.open("rb") as file:
            lines = sum(1 for line in file if line.strip())
        with self.path.open(encoding=self.encoding, newline="") as file:
            rows = sum(1 for row in csv.reader(file, delimiter=self.separator) if row)
        return lines == rows and not marked

    def faults(self) -> list[Finding]:
        """Findings in the form of a CSV file, each refused: nothing can be said about its columns yet."""
        if self.kind != "csv":
            return []
        if self.path.stat().st_size == 0:
            return [Finding("", "the file is empty", "give one with a header and rows", refused=True)]
        undecoded = _undecoded(self.path, self.encoding)
        return [undecoded] if undecoded else _form(self)

    def scan(self, scratch: Path) -> pl.LazyFrame:
        """Scan the table; the values of a CSV file or database are texts. scratch: a folder for a copy, where one is needed.

        Raises: InitError if it cannot be read.
        """
        try:
            if self.kind == "parquet":
                return pl.scan_parquet(self.path)
            if self.kind == "sqlite":
                return pl.scan_parquet(_answer(self, scratch / "answer.parquet"))
            utf8 = self.path if is_utf8(self.encoding) else _transcoded(self, scratch / "utf8.csv")
            return pl.scan_csv(utf8, separator=self.separator, infer_schema=False)
        except (pl.exceptions.PolarsError, OSError, sqlite3.Error) as error:
            raise InitError(f"{self.path} cannot be read: {error}") from error


def is_utf8(encoding: str) -> bool:
    """Whether a file in this encoding is UTF-8 as it is."""
    return codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"}


def _separator(path: Path, encoding: str) -> str:
    """Separator of a CSV file: the one of four that its first line has most of."""
    with path.open("rb") as file:
        line = file.readline(_CHUNK).decode(encoding, errors="replace")
    return max(_SEPARATORS, key=line.count) if path.suffix.lower() != ".tsv" else "\t"


def _undecoded(path: Path, encoding: str) -> Finding | None:
    """Find the first byte that is not in the encoding, reading the file in pieces."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, done = 1, 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                bad = max(0, error.start)
                line += piece[:bad].count(b"\n")
                example = error.object[bad : bad + 20]
                problem = f"byte {done + bad:,} in line {line:,} is not {encoding}"
                return Finding(
                    "", problem, "say the encoding, as in --encoding cp1252", 1, repr(example), refused=True
                )
            line += piece.count(b"\n")
            done += len(piece)
    return None


def _form(source: Source) -> list[Finding]:
    """Find a missing header, columns of one name, and rows with too many or too few fields."""
    encoding = "utf-8-sig" if is_utf8(source.encoding) else source.encoding
    with source.path.open(encoding=encoding, newline="") as file:
        lines = csv.reader(file, delimiter=source.separator)
        header = next(lines, [])
        found = _header(header)
        ragged, example, rows = 0, "", 0
        for fields in lines:
            if not fields:
                continue
            rows += 1
            if len(fields) != len(header):
                ragged += 1
                example = example or f"line {lines.line_num:,} with {len(fields)} fields"
        if not rows:
            found.append(Finding("", "there is a header and no row", "give a file with rows", refused=True))
        if ragged:
            problem = (
                f"{share(ragged, rows)} rows have another number of fields than the header's {len(header)}"
            )
            remedy = "quote values that hold the separator, or mend those lines"
            found.append(Finding("", problem, remedy, ragged, example, refused=True))
        return found


def _header(header: list[str]) -> list[Finding]:
    twice = [name for name, count in Counter(header).items() if count > 1]
    found = [
        Finding(name, "two columns have this name", "rename one", header.count(name), refused=True)
        for name in twice
    ]
    if header and all(_is_number(name) for name in header):
        problem = "the first line holds numbers and no names"
        found.append(
            Finding(
                "", problem, "add a line with the names of the columns", 1, shown(header[0]), refused=True
            )
        )
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _transcoded(source: Source, target: Path) -> Path:
    """Copy the file as UTF-8."""
    with (
        source.path.open(encoding=source.encoding, newline="") as file,
        target.open("w", encoding="utf-8", newline="") as copy,
    ):
        while piece := file.read(_CHUNK):
            copy.write(piece)
    return target


def _only_table(path: Path) -> str:
    """Query of the only table or view of a database. Raises: InitError if there are several, or none."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
            names = [name for (name,) in found if not name.startswith("sqlite_")]
    except sqlite3.Error as error:
        raise InitError(f"{path} is not an SQLite database: {error}") from error
    if len(names) != 1:
        raise InitError(
            f"{path.name} has the tables {sorted(names)}; say which rows are meant by --query with a SELECT"
        )
    return f'SELECT * FROM "{names[0]}"'  # noqa: S608  # a name out of the user's own database


def _answer(source: Source, target: Path) -> Path:
    """Write a query's answer to a Parquet file of texts, some rows at a time."""
    with closing(sqlite3.connect(f"file:{source.path}?mode=ro", uri=True)) as database:
        cursor = database.execute(source.query)
        names = [column[0] for column in cursor.description or ()]
        schema = pa.schema([pa.field(name, pa.string()) for name in names])
        with pq.ParquetWriter(target, schema) as writer:
            while rows := cursor.fetchmany(_ROWS):
                columns = [
                    [None if value is None else str(value) for value in column]
                    for column in zip(*rows, strict=True)
                ]
                writer.write_table(
                    pa.table([pa.array(column, pa.string()) for column in columns], schema=schema)
                )
    return target


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding in a table.

    column: its name, or empty for the whole file; count: values or rows concerned; remedy: what was done about it, or, if
    `refused`, what the user must do before a project can be made.
    """

    column: str
    problem: str
    remedy: str
    count: int = 0
    example: str = ""
    refused: bool = False

    def __str__(self) -> str:
        where = f"{self.column}: " if self.column else ""
        shown = f", such as {self.example}" if self.example else ""
        return f"{where}{self.problem}{shown}; {self.remedy}"


def shown(content: Any) -> str:
    """Quote a value of the table for a message, cut to 40 characters."""
    text = str(content)
    return repr(text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 1]}…")


def share(count: int, of: int) -> str:
    """Say how many of how many, with thousands separated."""
    return f"{count:,} of {of:,}"


class InitError(Exception):
    """A project that cannot be made; the message says what is wrong and what to do."""
