"""The loading step of a new project: how its rows are read, typed and given a key and a time.

Where the rows can be read as they are, the file is declared as a batch source instead.
"""

from __future__ import annotations

import json

from toque.ray_apps.new_project.columns import ColumnSummary
from toque.ray_apps.new_project.draft import Draft
from toque.ray_apps.new_project.roles import ROW
from toque.ray_apps.new_project.source import is_utf8

_ISO = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M")
_TYPES = {"integer": "Int64", "number": "Float64", "text": "String", "flag": "String"}


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
    renamed = {
        column.original: column.name
        for column in _used(draft, draft.roles.time)
        if column.original != column.name
    }
    if renamed:
        pairs = "".join(f"    {quoted(old)}: {quoted(new)},\n" for old, new in renamed.items())
        lines.append(f"RENAMED = {{\n{pairs}}}")
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
    if any(column.original != column.name for column in _used(draft, draft.roles.time)):
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
    if not is_utf8(source.encoding):
        return f"pl.read_csv(SOURCE, encoding={source.encoding!r}, {options}).lazy()"
    return f"pl.scan_csv(SOURCE, {options})"


def _selection(draft: Draft) -> str:
    """Lines of the columns that are selected, those that are made last."""
    roles = draft.roles
    kinds = {"Int64": "pl.Int64", "String": "pl.String", "Bool": "pl.Boolean"}
    keys = [f'pl.col("{name}").cast({kinds[key_type(draft, name)]}),' for name in roles.key_columns]
    made = [] if roles.key else [f"{ROW}=pl.int_range(pl.len(), dtype=pl.Int64),"]
    label = label_expression(draft)
    columns = ["*(pl.col(name).cast(kind) for name, kind in TYPES.items()),", *keys]
    columns += [label, *made] if label.startswith("pl.") else [*made, label]
    return "".join(f"        {line}\n" for line in [*columns, _time(draft)])


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


def _used(draft: Draft, *more: str | None) -> list[ColumnSummary]:
    """Columns of the features, the label and the key, with `more` by their names."""
    features = (*draft.checked.numeric, *draft.checked.categorical)
    names = {*features, draft.roles.label, *draft.roles.key_columns, *more}
    return [column for column in draft.found.columns if column.name in names]


def _plain(text: str) -> str:
    """Text without what would end a docstring."""
    return text.replace("\\", "/").replace('"', "'")


def is_declared(draft: Draft) -> bool:
    """Whether a batch source can read the file as it is: CSV or Parquet, with plain values and ISO times."""
    time = draft.found[draft.roles.time] if draft.roles.time else None
    dated = time is None or not time.format or time.format.startswith(_ISO[1:]) or time.format == _ISO[0]
    flags = any(draft.found[name].kind == "flag" for name in draft.checked.categorical)
    plain = draft.found.texts or not flags  # a typed flag is no text
    listed = draft.found[draft.roles.label].kind == "other"
    padded = draft.found.texts and draft.found.padded
    return (
        draft.source.kind != "sqlite"
        and draft.source.one_line_a_row
        and dated
        and plain
        and not (listed or padded)
    )


def source_declaration(draft: Draft) -> str:
    """Text that declares the source, in the module of features."""
    roles = draft.roles
    keys = [f'Field("{name}", {key_type(draft, name)})' for name in roles.keys]
    label = [f'Field("{roles.label}", {label_type(draft)})'] if roles.label not in roles.keys else []
    options = [f"    {_reader(draft)},", f"    schema=[{', '.join([*keys, '*FIELDS', *label])}],"]
    if roles.time:
        zone = "" if draft.found[roles.time].zoned else ', timezone="UTC"'
        options.append(f"    timestamp={quoted(draft.found[roles.time].original)}{zone},")
    if ROW in roles.keys and not roles.key:
        options.append(
            f'    row_number="{ROW}",  # the file has no key: its rows are numbered as they are read'
        )
    options.append(f"    unique=[{', '.join(map(quoted, roles.keys))}],")
    renamed = {each.name: each.original for each in _used(draft) if each.name != each.original}
    if renamed:
        pairs = ", ".join(f"{quoted(here)}: {quoted(there)}" for here, there in renamed.items())
        options.append(f"    columns={{{pairs}}},")
    return "\n".join([f'source = BatchSource(\n    "{draft.package}",', *options, ")"])


def label_type(draft: Draft) -> str:
    """Type of the label's column in the source."""
    label = draft.found[draft.roles.label]
    if label.kind == "flag" and not draft.found.texts:
        return "Bool"
    return "Float64" if draft.roles.outcome == "number" else _TYPES[label.kind]


def reader_name(draft: Draft) -> str:
    """Name of the reader of the file."""
    return "ParquetFiles" if draft.source.kind == "parquet" else "CsvFiles"


def declared_load_page(draft: Draft) -> str:
    """Text of the module that loads what is new in the declared file."""
    label = (
        label_expression(draft).rstrip(",").removeprefix(f"{draft.roles.label}=")
    )  # its name is its column's
    return f'''\
"""Loads what is new in the file that `features.source` declares; `toque train` calls `load`."""

import polars as pl

from toque.functions import context
from toque.functions.features import LoadedRows, load_declared
from {draft.package}.features import FEATURES, view

LABEL = {label}


def load() -> LoadedRows:
    """Load new rows into the platform's tables, and write what the model is asked about; what is there is not written again."""
    context().features().apply(FEATURES)
    return load_declared(view, entities="{draft.package}/entities", label=LABEL)
'''


def declared_test_page(draft: Draft) -> str:
    """Text of the project's test."""
    return f'''\
"""Checks of what {draft.name} learns from; run them by `python -m pytest`."""

from toque.functions import use_context
from toque.functions.runtime.context import context_of
from {draft.package}.features import CATEGORICAL, NUMERIC
from {draft.package}.load import load


def test_every_row_is_loaded_once(tmp_path):
    with use_context(context_of({{"TOQUE_STORE": f"file://{{tmp_path}}/store"}})):
        first, again = load(), load()
    assert first.labelled > 0
    assert (again.rows, again.written) == (first.rows, 0)


def test_the_label_is_no_feature():
    assert "{draft.roles.label}" not in NUMERIC + CATEGORICAL
'''


def _reader(draft: Draft) -> str:
    source = draft.source
    options = [quoted(str(source.path))]
    if source.kind == "csv":
        options += [f"delimiter={quoted(source.separator)}"] if source.separator != "," else []
        words = sorted({"", *draft.found.words})
        options.append(f"null=[{', '.join(map(quoted, words))}]")
        if not is_utf8(source.encoding):
            options.append(f"encoding={quoted(source.encoding)}")
    return f"{reader_name(draft)}({', '.join(options)})"
