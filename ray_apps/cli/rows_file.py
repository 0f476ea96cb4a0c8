"""Rows of a CSV or Parquet file as they are sent to a model by name, and its answers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

# polars is imported by who reads a file: it takes 100 ms.

ROWS_A_REQUEST = 1_000
_MISSING = ("", "NA", "NULL", "null")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_rows(path: Path, *, leave_out: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of a file, without some columns; a CSV column holds numbers if all its values are, and none begins with a 0.

    Raises: UsageError if it cannot be read, or lacks one of the columns to leave out.
    """
    import polars as pl

    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            frame = pl.read_parquet(path)
        elif path.suffix.lower() in _SEPARATORS:
            separator = _SEPARATORS[path.suffix.lower()]
            frame = pl.read_csv(path, separator=separator, infer_schema=False, null_values=[*_MISSING])
            frame = frame.select(_typed(frame[name]) for name in frame.columns)
        else:
            raise UsageError(f"--file {path}: give a .csv, .tsv or .parquet file")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"--file {path} cannot be read: {error}") from error
    unknown = sorted({*leave_out} - {*frame.columns})
    if unknown:
        raise UsageError(f"--file {path} has no column {unknown[0]!r}; it has {', '.join(frame.columns)}")
    if not frame.height:
        raise UsageError(f"--file {path} has no rows")
    return [_sendable(row) for row in frame.drop(*leave_out).to_dicts()]


def requests_of(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make the requests of rows, in parts, each with its id. keys: columns by which features are looked up."""
    missing = sorted({*keys} - {*rows[0]})
    if missing:
        raise UsageError(f"--key {missing[0]}: the file has no such column; it has {', '.join(rows[0])}")
    for start in range(0, len(rows), ROWS_A_REQUEST):
        part = rows[start : start + ROWS_A_REQUEST]
        values = [{each: value for each, value in row.items() if each not in keys} for row in part]
        parameters: dict[str, Any] = {"request": values}
        if keys:
            parameters["entities"] = [{each: row[each] for each in keys} for row in part]
        whole = name if len(rows) <= ROWS_A_REQUEST else f"{name}-{start // ROWS_A_REQUEST}"
        yield whole, {"id": whole, "inputs": [], "parameters": parameters}


def answers_of(answer: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Answers of a response by row: the prediction's id, the class by name if there are classes, and the outputs."""
    ids = [answer["id"]] if count == 1 else [f"{answer['id']}:{row}" for row in range(count)]
    rows: list[dict[str, Any]] = [{"prediction": each} for each in ids]
    for row, name in zip(rows, answer["parameters"].get("class", ()), strict=False):
        row["class"] = name
    for output in answer["outputs"]:
        width = len(output["data"]) // count
        for place, row in enumerate(rows):
            values = output["data"][place * width : (place + 1) * width]
            row[output["name"]] = values[0] if width == 1 else values
    return rows


def _typed(column: pl.Series) -> pl.Series:
    """Numbers of a column of texts, if it holds nothing else; codes such as 00501 stay texts."""
    import polars as pl

    texts = column.str.strip_chars()
    for kind in (pl.Int64, pl.Float64):
        numbers = texts.cast(kind, strict=False)
        if numbers.null_count() == texts.null_count() and not texts.str.contains(r"^-?0\d").any():
            return numbers
    return texts


def _sendable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON takes it: no NaN, and a time or other value as text."""
    return {
        name: None
        if value is None or value != value  # noqa: PLR0124  # NaN
        else value
        if isinstance(value, str | int | float | bool)
        else str(value)
        for name, value in row.items()
    }
