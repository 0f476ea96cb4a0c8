"""Prints what the commands have to say: tables and facts for people, TSV and JSON for programs.

Only what is printed to a terminal is fitted to its width; in a pipe, and with `-o wide`, nothing is shortened. A number, an
identifier, a name or a date is whole at any width. Only free text is shortened, at its middle and between words; with less room
each row becomes a block of lines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TextIO

# rich is imported where a terminal needs it: it takes 50 ms, and a pipe has no colours.

Format = Literal["table", "wide", "tsv", "json"]
FORMATS: tuple[Format, ...] = ("table", "wide", "tsv", "json")

_GAP = 2  # spaces between two columns
_ELLIPSIS = "…"
_LEAST_TEXT = 16  # cells that a shortened text keeps; with less, each row becomes a block
_LARGE = 10_000.0  # from here on a rounded number would lose digits before the point
_EXACT = 1e15  # from here on a float's own notation is the only honest one
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?(?:Z|\+00:00)")
_WORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?|\S+")  # a date with its time is one word
_NAMED = re.compile(r"\{\w")  # a field of an object, in the form of a column
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a name may not move the terminal's cursor


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or a fact about one thing.

    source: key of the row, with dots into inner objects and lists, or what makes the value from the row. text: free text,
    which may be shortened. wide: printed with `-o wide` only. form: how the value is written, as in "count" or "{:.1%}".
    """

    heading: str
    source: str | Callable[[Any], Any]
    text: bool = False
    wide: bool = False
    form: str = ""

    def of(self, row: Any) -> Any:
        """The value of this column in `row`."""
        if not isinstance(self.source, str):
            return _written(self.source(row), self.form)
        found = row
        for key in self.source.split("."):
            name = key.removesuffix("?")
            if isinstance(found, list):
                found = found[int(name)] if int(name) < len(found) else None
            elif found is not None:
                found = found.get(name) if name != key else found[name]
        return _written(found, self.form)


def _written(content: Any, form: str) -> Any:
    """A value in the form of its column; a list by its members, an object by its fields where the form names some."""
    if not form:
        return content
    form, _, absent = form.partition(" or ")
    if content is None:
        return absent or None
    if form in _FORMS:
        return _FORMS[form](content)
    if isinstance(content, list):
        return [_written(each, form) for each in content]
    if isinstance(content, dict):
        members = content.items() if "{key}" in form else ()
        rows = [form.format_map({"key": key, **row}) for key, row in members]
        return rows if "{key}" in form else form.format_map(content)
    return content if _NAMED.search(form) else form.format(content)


def span(seconds: float) -> str:
    """A time as "2d 3h", "3h 20min" or "45s": its two greatest units."""
    left, parts = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


_FORMS: dict[str, Callable[[Any], Any]] = {
    "count": len,
    "pairs": lambda content: [f"{name}={value}" for name, value in content.items()],
    "words": lambda content: str(content).replace("_", " "),
    "json": lambda content: json.dumps(content, ensure_ascii=False),
    "age": span,
}


Columns = Sequence[Column]
Rows = Sequence[Any]


def columns(
    shown: str, *, wide: str = "", texts: str = "", values: Mapping[str, Callable[[Any], Any]] | None = None
) -> tuple[Column, ...]:
    """Columns by their headings, as in `columns("ID: id | status | CPU, s: receipt.cpu_s")`.

    After a heading stands the key of the row, which may lead into inner objects; a heading that is the key stands alone.
    A key that ends with `?` may be missing. After the key may stand its form: `as count`, `pairs` (loss=0.5), `words`, `json`, `age` (of seconds), or a format such
    as `as {:.1%}` and, for objects and lists of them, `as {model}@{version}`, in which {key} is the name of each; what is
    shown where there is nothing may follow, as in `as {:g} days or for ever`.
    wide: further columns, which only `-o wide` prints. texts: headings of columns that hold free text. values: what makes
    the value of a column from the row, by heading. Raises: ValueError if a heading of `texts` is that of no column.
    """
    free, made = [each for each in texts.split(" | ") if each], values or {}
    found = []
    for part, hidden in ((shown, False), (wide, True)):
        for each in filter(None, part.split(" | ")):
            heading, _, key = each.partition(": ")
            key, _, form = key.partition(" as ")
            found.append(Column(heading, made.get(heading, key or heading), heading in free, hidden, form))
    if unknown := set(free) - {each.heading for each in found}:
        raise ValueError(f"no column has the heading {sorted(unknown)}")
    return tuple(found)


def newest_first(rows: Rows, field: str = "created_at") -> list[Any]:
    """Rows by the time in `field`, the newest first."""
    return sorted(
        rows, key=lambda each: each[field] if isinstance(each[field], int) else str(each[field]), reverse=True
    )


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


def laid_out(
    columns: Columns, rows: Sequence[Sequence[Any]], *, width: int | None, exact: bool = False
) -> list[str]:
    """The lines of a table that is at most `width` cells wide; where it cannot be, a block of lines for each row.

    width: None for any width. exact: numbers are not rounded.
    """
    headings = [each.heading for each in columns]
    cells = [[cell_text(each, exact=exact) for each in row] for row in rows]
    if width is not None:
        fitted = _fitted(columns, cells, width)
        if fitted is None:
            blocks = [["", *block(headings, row, width)] for row in cells]
            return list(chain.from_iterable(blocks))[1:]
        cells = fitted
    right = [bool(rows) and all(_is_number(row[at]) for row in rows) for at in range(len(columns))]
    sizes = _sizes(headings, cells)
    lines = [styled(_line(headings, sizes, right), "1", sys.stdout)]
    return lines + [_line(row, sizes, right) for row in cells]


def block(headings: Sequence[str], row: Sequence[str], width: int | None) -> list[str]:
    """A line for each value, wrapped between words; a word that is too long goes beyond the width."""
    margin = max(map(_cells, headings)) + _GAP
    lines = []
    for heading, cell in zip(headings, row, strict=True):
        parts = [cell] if width is None else wrapped(cell, width - margin)
        lines.append(styled(_padded(heading, margin), "1", sys.stdout) + parts[0])
        lines += [" " * margin + part for part in parts[1:]]
    return lines


def shortened(text: str, room: int) -> str:
    """`text` with words of its middle left out, so that it takes at most `room` cells; each word is whole or left out.

    A single word without digits is cut itself; one with digits may be a number or an identifier, and stays whole.
    """
    if _cells(text) <= room:
        return text
    words = _WORD.findall(text)
    head: list[str] = []
    tail: list[str] = []
    left = room - 1
    while words:
        front = sum(map(_cells, head)) <= sum(map(_cells, tail))
        if _cells(words[0 if front else -1]) >= left:
            front = not front  # what does not fit at one end may do so at the other
        word = words[0 if front else -1]
        if _cells(word) >= left:
            break
        left -= _cells(word) + 1
        if front:
            head.append(words.pop(0))
        else:
            tail.insert(0, words.pop())
    if head or tail:
        return " ".join([*head, _ELLIPSIS, *tail])
    if re.search(r"\d", words[0]):
        return f"{words[0]} {_ELLIPSIS}" if len(words) > 1 else words[0]
    return f"{words[0][: room // 2]}{_ELLIPSIS}{words[0][len(words[0]) - (room - 1) // 2 :]}"


def wrapped(text: str, room: int) -> list[str]:
    """`text` in lines of at most `room` cells, broken between words; a word that is too long stays whole."""
    lines: list[str] = []
    for word in _WORD.findall(text):
        if lines and _cells(lines[-1]) + 1 + _cells(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [text]


def plain(content: Any) -> str:
    """A value as text: names of a list with commas, any other collection as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and all(isinstance(each, str | int) for each in content):
        return ", ".join(map(str, content))
    return json.dumps(content, ensure_ascii=False, default=str)


def cell_text(content: Any, *, exact: bool) -> str:
    """A value as a person reads it; `exact`: not rounded, and times with their seconds."""
    if content is None or content in ("", [], {}, ()):
        return "-"
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, float):
        return repr(content) if exact else _rounded(content)
    text = plain(content)
    keep = r"\1 \2\3" if exact else r"\1 \2"
    return CONTROL.sub("", " ".join(_TIME.sub(keep, text).split()))


def styled(text: str, code: str, stream: TextIO) -> str:
    """`text` in the style of an ANSI code, such as "1" for bold, where the stream shows it."""
    return f"\x1b[{code}m{text}\x1b[0m" if coloured(stream) else text


def coloured(stream: TextIO) -> bool:
    """Whether the stream is a terminal whose user wants colours."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def _fitted(columns: Columns, cells: list[list[str]], width: int) -> list[list[str]] | None:
    """The cells, with texts shortened so that every line fits; None if that is not possible."""
    headings = [each.heading for each in columns]
    sizes = _sizes(headings, cells)
    texts = [at for at, column in enumerate(columns) if column.text]
    room = width - _GAP * (len(columns) - 1) - sum(size for at, size in enumerate(sizes) if at not in texts)
    allowed: dict[int, int] = {}
    for done, at in enumerate(sorted(texts, key=lambda each: sizes[each])):
        allowed[at] = min(sizes[at], room // (len(texts) - done))
        room -= allowed[at]
    least = {at: min(sizes[at], max(_LEAST_TEXT, _cells(headings[at]))) for at in texts}
    if room < 0 or any(allowed[at] < least[at] for at in texts):
        return None
    fitted = [
        [shortened(cell, allowed[at]) if at in allowed else cell for at, cell in enumerate(row)]
        for row in cells
    ]
    return fitted if sum(_sizes(headings, fitted)) + _GAP * (len(columns) - 1) <= width else None


def _line(cells: Sequence[str], sizes: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        " " * (size - _cells(cell)) + cell if aligned else _padded(cell, size)
        for cell, size, aligned in zip(cells, sizes, right, strict=True)
    ]
    return (" " * _GAP).join(padded).rstrip()


def _padded(text: str, size: int) -> str:
    return text + " " * (size - _cells(text))


def _sizes(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(_cells, column)) for column in zip(headings, *cells, strict=True)]


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _rounded(number: float) -> str:
    """A float in five digits, but never fewer than stand before its point."""
    if _LARGE <= abs(number) < _EXACT:
        return f"{number:.0f}"
    return f"{number:.5g}" if abs(number) < _LARGE else repr(number)


def _is_number(content: Any) -> bool:
    return isinstance(content, int | float) and not isinstance(content, bool)
