"""Truth of labels in the terms of the version that answered: names of classes, lists, and texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.prediction_log.records import ANSWER_TEXT, CONTENT, LABEL_TEXT, TRUTH
from toque.registry.models import Signature

FindSignature = Callable[[int], Signature | None]
"""Signature of a version of the model by its number; None if it has none."""


def with_truth(rows: pa.Table, find_signature: FindSignature) -> pa.Table:
    """Add the column `truth`: for a list of names a 0 or 1 for each class of the row's version, a list of numbers as it is.

    It is null where the label is no list, and where the list names what the version does not know, as for a label that does not
    fit. Rows of which no label is a list, or that do not name their version, are returned without both columns.
    """
    if rows[CONTENT.name].null_count == rows.num_rows or "version" not in rows.column_names:
        return rows.drop_columns([CONTENT.name])
    classes: dict[int, Sequence[str] | None] = {}
    for version in pc.unique(rows["version"]).to_pylist():
        signature = find_signature(version)
        classes[version] = signature.outputs[0].columns if signature is not None else None
    truth = [
        None if content is None else _truth(json.loads(content), classes[version])
        for content, version in zip(rows[CONTENT.name].to_pylist(), rows["version"].to_pylist(), strict=True)
    ]
    return rows.append_column(TRUTH, pa.array(truth, TRUTH.type))


def with_class_numbers(rows: pa.Table, find_signature: FindSignature) -> pa.Table:
    """Put the number of a class in place of its name, where a label is the name of a class of the row's version.

    rows: with `version`. A text that names no class stays a text.
    """
    numbers: dict[int, dict[str, int]] = {}
    for version in pc.unique(rows.filter(is_text(rows))["version"]).to_pylist():
        signature = find_signature(version)
        names = signature.classes if signature is not None else ()
        numbers[version] = {json.dumps(name): number for number, name in enumerate(names)}
    contents, labels = rows[CONTENT.name].to_pylist(), rows["label"].to_pylist()
    for place, version in enumerate(rows["version"].to_pylist()):
        number = numbers.get(version, {}).get(contents[place])
        if number is not None:
            contents[place], labels[place] = None, float(number)
    for name, values in ((CONTENT.name, contents), ("label", labels)):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    return rows


def is_text(rows: pa.Table) -> pa.ChunkedArray:
    """Whether the label of each row is a text; null for a number."""
    return pc.starts_with(rows[CONTENT.name], '"')


def with_texts(rows: pa.Table, answers: Sequence[str | None]) -> pa.Table:
    """Add what was answered and what was true, as texts, each null where it is none. answers: one a row."""
    texts = [
        json.loads(each) if each is not None and each.startswith('"') else None
        for each in rows[CONTENT.name].to_pylist()
    ]
    for field, values in ((ANSWER_TEXT, answers), (LABEL_TEXT, texts)):
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows


def _truth(content: str | list[str | float], classes: Sequence[str] | None) -> list[float] | None:
    if isinstance(content, str):
        return None
    if content and not isinstance(content[0], str):
        return [float(each) for each in content]
    if classes is None or not set(content) <= set(classes):
        return None
    return [float(name in content) for name in classes]
