"""Prints what the commands have to say: tables and facts for people, TSV and JSON for programs.

Only what is printed to a terminal is fitted to its width; in a pipe, and with `-o wide`, nothing is shortened.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toque.ray_apps.cli.layout import CONTROL, block, cell_text, coloured, laid_out, plain, styled

# rich is imported where a terminal needs it: it takes 50 ms, and a pipe has no colours.

Format = Literal["table", "wide", "tsv", "json"]
FORMATS: tuple[Format, ...] = ("table", "wide", "tsv", "json")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or a fact about one thing.

    source: key of the row, with dots into inner objects, or what makes the value from the row. text: free text, which may
    be shortened. wide: printed with `-o wide` only.
    """

    heading: str
    source: str | Callable[[Any], Any]
    text: bool = False
    wide: bool = False

    def of(self, row: Any) -> Any:
        """The value of this column in `row`."""
        if not isinstance(self.source, str):
            return self.source(row)
        found = row
        for key in self.source.split("."):
            found = None if found is None else found[key]
        return found


Columns = Sequence[Column]
Rows = Sequence[Any]


def columns(
    shown: str, *, wide: str = "", texts: str = "", values: Mapping[str, Callable[[Any], Any]] | None = None
) -> tuple[Column, ...]:
    """Columns by their headings, as in `columns("ID: id | status | CPU, s: receipt.cpu_s")`.

    After a heading stands the key of the row, which may lead into inner objects; a heading that is the key stands alone.
    wide: further columns, which only `-o wide` prints. texts: headings of columns that hold free text. values: what makes
    the value of a column from the row, by heading. Raises: ValueError if a heading of `texts` is that of no column.
    """
    free, made = [each for each in texts.split(" | ") if each], values or {}
    found = []
    for part, hidden in ((shown, False), (wide, True)):
        for each in filter(None, part.split(" | ")):
            heading, _, key = each.partition(": ")
            found.append(Column(heading, made.get(heading, key or heading), heading in free, hidden))
    if unknown := set(free) - {each.heading for each in found}:
        raise ValueError(f"no column has the heading {sorted(unknown)}")
    return tuple(found)


def percent(share: float | None) -> str | None:
    """A part of a whole in per cent; None stays None."""
    return None if share is None else f"{share:.2%}"


def pairs(field: str) -> Callable[[Any], list[str]]:
    """What gives a field that holds values by name as a list: `loss=0.5`, `auc=0.75`."""
    return lambda row: [f"{name}={content}" for name, content in row[field].items()]


def newest_first(rows: Rows, field: str = "created_at") -> list[Any]:
    """Rows by the time in `field`, the newest first."""
    return sorted(rows, key=lambda each: str(each[field]), reverse=True)


def listing(
    output: Format | None, columns: Columns, rows: Rows, *, empty: str, limit: int | None, total: Any = None
) -> None:
    """Print rows as a table, or as they are by `-o json`.

    empty: what is said, on standard error, where there is no row. limit: how many rows are printed; if there are more, a
    line on standard error says so. total: a last row that is not counted, and not part of the JSON.
    """
    kept = list(rows if limit is None else rows[:limit])
    every = kept + ([total] if total is not None and kept else [])
    table(output, columns, every, whole=kept, remark="" if kept else empty)
    if limit is not None and len(rows) > limit:
        note(f"the first {limit} are shown and there are more; --limit {2 * limit} shows further ones")


def table(
    output: Format | None, columns: Columns, rows: Rows, *, whole: Any = None, remark: str = ""
) -> None:
    """Print rows as a table for people or as TSV. A header line stands in TSV even where there is no row.

    whole: what `-o json` prints; by default the rows. remark: said on standard error, but not beside JSON.
    """
    how = chosen(output)
    if how == "json":
        value(rows if whole is None else whole)
        return
    used = _used(columns, how)
    values = [[each.of(row) for each in used] for row in rows]
    if _for_programs(how):
        _write_tsv([each.heading for each in used], values)
    elif rows:
        width = None if how == "wide" else _width()
        for line in laid_out(used, values, width=width, exact=how == "wide"):
            say(line)
    if remark:
        note(remark)


def facts(output: Format | None, columns: Columns, thing: Any) -> None:
    """Print the facts about one thing, a line each; by `-o json` the thing itself."""
    how = chosen(output)
    if how == "json":
        value(thing)
        return
    used = _used(columns, how)
    headings, values = [each.heading for each in used], [each.of(thing) for each in used]
    if _for_programs(how):
        _write_tsv(["field", "value"], zip(headings, values, strict=True))
        return
    cells = [cell_text(each, exact=how == "wide") for each in values]
    for line in block(headings, cells, None if how == "wide" else _width()):
        say(line)


def facts_and_table(output: Format | None, about: Columns, thing: Any, columns: Columns, rows: Rows) -> None:
    """Print the facts about one thing, then its rows; by `-o json` the thing itself, by `-o tsv` the rows alone."""
    how = chosen(output)
    if how in {"json", "tsv"}:
        table(how, columns, rows, whole=thing)
        return
    facts(how, about, thing)
    if rows:
        say("")
        table(how, columns, rows)


def message(output: Format | None, text: str, content: Any) -> None:
    """Print a sentence; by `-o json` the value it is about."""
    if chosen(output) == "json":
        value(content)
    else:
        say(text)


def value(content: Any) -> None:
    """Print a value as JSON: the result of a function or the answer of a model, whose shape only its caller knows."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    if coloured(sys.stdout):
        from rich.console import Console

        Console(soft_wrap=True).print_json(text)
    else:
        say(text)


def say(text: str) -> None:
    """Print a line to standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Print a remark to standard error, so that what is piped stays data."""
    sys.stderr.write(f"{text}\n")


def see_page(output: Format | None, address: str) -> None:
    """Name the page of the console that shows more to people, who read tables; programs are told nothing."""
    how = chosen(output)
    if how != "json" and not _for_programs(how):
        note(f"in the console: {address}")


def complain(text: str) -> None:
    """Print an error to standard error, as one line."""
    line = " ".join(part.strip() for part in CONTROL.sub("", text).splitlines() if part.strip())
    sys.stderr.write(styled(line, "31", sys.stderr) + "\n")


def chosen(output: Format | None) -> Format:
    """The format that is meant: what was asked for, else a table at a terminal and TSV elsewhere."""
    return output or ("table" if _at_terminal() else "tsv")


def _used(columns: Columns, how: Format) -> list[Column]:
    return [each for each in columns if how == "wide" or not each.wide]


def _for_programs(how: Format) -> bool:
    return how == "tsv" or (how == "wide" and not _at_terminal())


def _write_tsv(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    for row in [headings, *rows]:
        sys.stdout.write("\t".join(map(_tsv, row)) + "\n")


def _tsv(content: Any) -> str:
    if content is None:
        return ""
    text = json.dumps(content) if isinstance(content, bool | float) else plain(content)
    escapes = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return "".join(escapes.get(each, each) for each in text)


def _at_terminal() -> bool:
    return sys.stdout.isatty()


def _width() -> int:
    return shutil.get_terminal_size().columns
