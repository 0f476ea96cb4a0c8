"""Declared source of a new project: the file as a batch source, where its rows can be read as they are."""

from __future__ import annotations

from toque.ray_apps.new_project.columns import ColumnSummary
from toque.ray_apps.new_project.draft import Draft
from toque.ray_apps.new_project.load_page import key_type, label_expression, quoted
from toque.ray_apps.new_project.roles import ROW

_ISO = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M")
_TYPES = {"integer": "Int64", "number": "Float64", "text": "String", "flag": "String"}


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
    return f'''\
"""Loads what is new in the file that `features.source` declares; `toque train` calls `load`."""

import polars as pl

from toque.functions import context
from toque.functions.features import LoadedRows, load_declared
from {draft.package}.features import FEATURES, view

LABEL = {_label(draft)}


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


def _label(draft: Draft) -> str:
    """Expression of the label, whose name is that of its column."""
    return label_expression(draft).rstrip(",").removeprefix(f"{draft.roles.label}=")


def _reader(draft: Draft) -> str:
    source = draft.source
    options = [quoted(str(source.path))]
    if source.kind == "csv":
        options += [f"delimiter={quoted(source.separator)}"] if source.separator != "," else []
        words = sorted({"", *draft.found.words})
        options.append(f"null=[{', '.join(map(quoted, words))}]")
        if source.encoding.replace("-", "").lower() not in {"utf8", "utf8sig", "ascii"}:
            options.append(f"encoding={quoted(source.encoding)}")
    return f"{reader_name(draft)}({', '.join(options)})"


def _used(draft: Draft) -> list[ColumnSummary]:
    names = {
        *draft.checked.numeric, *draft.checked.categorical, draft.roles.label, *draft.roles.key_columns,
    }  # fmt: skip
    return [each for each in draft.found.columns if each.name in names]
