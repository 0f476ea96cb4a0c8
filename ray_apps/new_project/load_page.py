"""The loading step of a new project: how its rows are read, typed and given a key and a time."""

from __future__ import annotations

import json

from toque.ray_apps.new_project.columns import ColumnSummary
from toque.ray_apps.new_project.draft import Draft
from toque.ray_apps.new_project.roles import ROW


def load_page(draft: Draft) -> str:
    """Text of the module that reads the rows and writes the tables."""
    roles = draft.roles
    imports = ["from datetime import UTC, datetime", ""] if roles.time is None else []
    imports += ["import sqlite3", ""] if draft.source.kind == "sqlite" else []
    return f'''\
"""Fills the tables from {_plain(draft.source.name)}; `toque train` calls `load`."""

{"".join(line + chr(10) for line in imports)}import polars as pl

from toque.functions import context
from toque.functions.features import LoadedRows, load_rows
from {draft.package}.features import CATEGORICAL, FEATURES, NUMERIC, view

SOURCE = {quoted(str(draft.source.path))}
{_constants(draft)}

def read() -> pl.LazyFrame:
    """Read the rows: when each was known, its key, its features and the label."""
{_reading(draft)}
    return rows.select(
{_selection(draft)}    )


def load() -> LoadedRows:
    """Write the rows to the platform's tables; what is there already is not written again."""
    context().features().apply(FEATURES)
    return load_rows(read(), view=view, entities="{draft.package}/entities", label="{roles.label}")
'''


def key_type(draft: Draft, name: str) -> str:
    """Type of a key's column, by its name in `featurestore`."""
    if name not in draft.roles.key_columns:
        return "Int64"
    return {"integer": "Int64", "flag": "String" if draft.found.texts else "Bool"}.get(
        draft.found[name].kind, "String"
    )


def quoted(text: str) -> str:
    """Text as a string literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def _constants(draft: Draft) -> str:
    lines = []
    if draft.source.kind == "sqlite":
        lines.append(f"QUERY = {draft.source.query!r}")
    renamed = {column.original: column.name for column in _used(draft) if column.original != column.name}
    if renamed:
        lines.append(f"RENAMED = {_mapping(renamed)}")
    lines.append("TYPES = dict.fromkeys(NUMERIC, pl.Float64) | dict.fromkeys(CATEGORICAL, pl.String)")
    return "\n".join(lines) + "\n"


def _reading(draft: Draft) -> str:
    lines = [f"rows = {_scan(draft)}"]
    if draft.found.texts and draft.found.padded:
        lines.append(
            "rows = rows.with_columns(pl.all().str.strip_chars())  # some values have spaces around them"
        )
    if draft.source.kind == "sqlite" and draft.found.words:
        lines.append(f"rows = rows.with_columns(pl.all().replace(dict.fromkeys({draft.found.words!r})))")
    if any(column.original != column.name for column in _used(draft)):
        lines.append("rows = rows.rename(RENAMED)")
    return "\n".join(f"    {line}" for line in lines)


def _scan(draft: Draft) -> str:
    source = draft.source
    if source.kind == "parquet":
        return "pl.scan_parquet(SOURCE)"
    if source.kind == "sqlite":
        return "pl.read_database(QUERY, sqlite3.connect(SOURCE), infer_schema_length=None).lazy().cast(pl.String)"
    options = "infer_schema=False"
    if source.separator != ",":
        options += f", separator={quoted(source.separator)}"
    words = [word for word in draft.found.words if word]
    if words:
        options += f", null_values=[{', '.join(map(quoted, words))}]"
    if source.encoding.replace("-", "").lower() not in {"utf8", "utf8sig", "ascii"}:
        return f"pl.read_csv(SOURCE, encoding={source.encoding!r}, {options}).lazy()"
    return f"pl.scan_csv(SOURCE, {options})"


def _selection(draft: Draft) -> str:
    """Lines of the columns that are selected, those that are made last."""
    roles = draft.roles
    keys = [_key(draft, name) for name in roles.key_columns]
    made = [] if roles.key else [f"{ROW}=pl.int_range(pl.len(), dtype=pl.Int64),"]
    label = label_expression(draft)
    columns = ["*(pl.col(name).cast(kind) for name, kind in TYPES.items()),", *keys]
    columns += [label, *made] if label.startswith("pl.") else [*made, label]
    return "".join(f"        {line}\n" for line in [*columns, _time(draft)])


def _key(draft: Draft, name: str) -> str:
    kind = {"Int64": "pl.Int64", "String": "pl.String", "Bool": "pl.Boolean"}[key_type(draft, name)]
    return f'pl.col("{name}").cast({kind}),'


def _time(draft: Draft) -> str:
    if draft.roles.time is None:
        return (
            "# The table has no times: its rows are spread over one day, in an order that is not the file's.\n"
            "        event_timestamp=datetime(2024, 1, 1, tzinfo=UTC)\n"
            "        + pl.duration(microseconds=pl.int_range(pl.len(), dtype=pl.Int64) * 2_654_435_761 % 86_400_000_000),"
        )
    column = draft.found[draft.roles.time]
    if column.format:
        zone = "" if "z" in column.format else ', time_zone="UTC"'
        return f'event_timestamp=pl.col("{column.name}").str.to_datetime("{column.format}", time_unit="us"{zone}),'
    utc = '.dt.convert_time_zone("UTC")' if column.zoned else '.dt.replace_time_zone("UTC")'
    return f'event_timestamp=pl.col("{column.name}").cast(pl.Datetime("us")){utc},'


def label_expression(draft: Draft) -> str:
    """Expression of the label, of the columns as they are read."""
    label, outcome = draft.found[draft.roles.label], draft.roles.outcome
    column = f'pl.col("{label.name}")'
    listed = {"multilabel": "pl.List(pl.String)", "vector": "pl.List(pl.Float64)"}
    if draft.roles.separator:
        names = f"{column}.str.split({quoted(draft.roles.separator)})"
        return f'{names}.list.eval(pl.element().str.strip_chars().filter(pl.element() != "")),'
    if outcome in {"number", *listed}:
        return f"{column}.cast({listed.get(outcome, 'pl.Float64')}),"
    if outcome == "binary" and not draft.roles.coded:
        positive = draft.roles.classes[1]
        return f"{label.name}=({column}.cast(pl.String) == {quoted(positive)}).cast(pl.Int64),"
    return f"{column}.cast({'pl.Int64' if label.numeric else 'pl.String'}),"


def _used(draft: Draft) -> list[ColumnSummary]:
    names = {
        *draft.checked.numeric,
        *draft.checked.categorical,
        draft.roles.label,
        draft.roles.time,
        *draft.roles.key_columns,
    }
    return [column for column in draft.found.columns if column.name in names]


def _mapping(names: dict[str, str]) -> str:
    lines = "".join(f"    {quoted(old)}: {quoted(new)},\n" for old, new in names.items())
    return f"{{\n{lines}}}"


def _plain(text: str) -> str:
    """Text without what would end a docstring."""
    return text.replace("\\", "/").replace('"', "'")
