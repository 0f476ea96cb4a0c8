"""Subject of an erasure: an entity, a unit or both, and how it is recognised in rows, JSON and bytes."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from featurestore.definitions.stream_source import ASIDE_REASON, ASIDE_ROW
from featurestore.sources.rows import REASON, ROW
from functions.prediction_log import pseudonym

UNIT, ENTITIES, PREDICTION_ID, DATA = "unit", "entities", "prediction_id", "data"
_KEPT_ASIDE = ((REASON, ROW), (ASIDE_REASON, ASIDE_ROW))
"""Columns by which rows that were kept aside are known, and their text: in a table of their own, and among a stream's events."""
MIN_TEXT = 8
"""Characters from which a value is searched as text anywhere; a shorter one only under its name."""


class Subject(BaseModel):
    """Person or thing to erase: values by join key, the unit of the traffic split, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity: dict[str, str] = Field(default_factory=dict)
    unit: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.entity and self.unit is None:
            raise ValueError("entity and unit are both missing; give a join key with its value, or a unit")
        if not all([*self.entity, *self.entity.values(), self.unit != ""]):
            raise ValueError(
                f"entity={self.entity!r}, unit={self.unit!r}: names and values must not be empty"
            )
        return self

    def digest(self, salt: str) -> str:
        """Hash the subject slowly (scrypt) with a salt, so that a certificate proves whom it is about to who knows."""
        text = json.dumps([sorted(self.entity.items()), self.unit]).encode()
        return hashlib.scrypt(text, salt=salt.encode(), n=2**14, r=8, p=1, dklen=32).hex()


def new_salt() -> str:
    """Make a random salt for `Subject.digest`."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Traces:
    """Values by which a subject is found, its pseudonyms among them; a `Choice` of rows for `remove_rows`.

    values: accepted values by column; unit: accepted units; ids: of the subject's predictions; texts: searched anywhere.
    """

    values: dict[str, frozenset[str]]
    units: frozenset[str]
    ids: frozenset[str] = frozenset()
    texts: tuple[str, ...] = ()
    _id_values: pa.Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_id_values", pa.array(sorted(self.ids), pa.string()))

    @classmethod
    def of(cls, subject: Subject, *, key: str | None, ids: Iterable[str] = ()) -> Self:
        """Derive the traces of a subject, its pseudonyms included. key: of the pseudonyms in the log, None if there are none."""
        values = {name: _with_pseudonym(value, key) for name, value in subject.entity.items()}
        units = _with_pseudonym(subject.unit, key) if subject.unit is not None else frozenset()
        texts = {each for found in (*values.values(), units) for each in found if len(each) >= MIN_TEXT}
        return cls(values, units, frozenset(ids), tuple(sorted(texts)))

    def columns(self, schema: pa.Schema) -> list[str]:
        """Columns of a table in which the subject may stand."""
        named = {*self.values, UNIT, ENTITIES, PREDICTION_ID}
        for pair in _KEPT_ASIDE:
            named |= set(pair) if set(pair) <= set(schema.names) else set()
        return [
            each.name for each in schema if each.name in named or (self.texts and _may_hold_text(each.type))
        ]

    def mask(self, rows: pa.Table) -> pa.Array:
        """Tell for each row whether it is about the subject."""
        found = pa.array([False] * rows.num_rows)
        for reason, text in _KEPT_ASIDE:
            if {reason, text} <= set(rows.column_names):
                found = pc.or_(found, self._in_rows_kept_aside(rows.column(text)))
        for name in self.columns(rows.schema):
            column = rows.column(name).combine_chunks()
            for each in self._column_masks(name, column):
                found = pc.or_(found, pc.fill_null(each, False))
        return found

    def _column_masks(self, name: str, column: pa.Array) -> Iterator[pa.Array]:
        if name == PREDICTION_ID and self.ids:
            yield pc.is_in(column, value_set=self._id_values)
        accepted = self.units if name == UNIT else self.values.get(name, frozenset())
        if accepted and not pa.types.is_nested(column.type):
            yield pc.is_in(column.cast(pa.string()), value_set=pa.array(sorted(accepted), pa.string()))
        if name == ENTITIES and self.values and _is_text(column.type):
            documents = {
                each: self.in_document(json.loads(each)) for each in pc.unique(column).to_pylist() if each
            }
            yield pa.array([documents.get(each, False) for each in column.to_pylist()], pa.bool_())
        if self.texts and _may_hold_text(column.type):
            yield from (_contains(column, text) for text in self.texts)

    def _in_rows_kept_aside(self, texts: pa.ChunkedArray) -> pa.Array:
        """Tell which of a source's rows that were kept aside may be about the subject: those with one of its values.

        Under any name, since the source has names of its own, and such a row is no loss.
        """
        accepted = frozenset().union(self.units, *self.values.values())
        return pa.array(
            [bool(text and accepted & _values_in(text)) for text in texts.to_pylist()], pa.bool_()
        )

    def in_document(self, value: Any) -> bool:
        """Whether a JSON value has the subject under one of its names, at any depth."""
        if isinstance(value, list):
            return any(self.in_document(each) for each in value)
        if not isinstance(value, dict):
            return False
        return any(self._under(name, each) or self.in_document(each) for name, each in value.items())

    def _under(self, name: str, value: Any) -> bool:
        accepted = self.units if name == UNIT else self.values.get(name, frozenset())
        values = value if isinstance(value, list) else [value]
        return any(isinstance(each, str | int) and str(each) in accepted for each in values)

    def mentions(self, text: str) -> bool:
        """Whether a text holds one of the long values, as it is or escaped as JSON does."""
        return any(each in text or json.dumps(each)[1:-1] in text for each in self.texts)

    def in_bytes(self, data: bytes) -> bool:
        """Whether an object's bytes hold a long value, or JSON that names the subject."""
        text = data.decode("utf-8", "replace")
        if self.mentions(text):
            return True
        return any(self.in_document(each) for each in _documents(text))


def _values_in(text: str) -> set[str]:
    """Values of a row that was kept aside: of its JSON, or the fields of a line or of torn JSON, split at any separator."""
    found = next(iter(_documents(text)), None)
    if isinstance(found, dict):
        return {str(each).strip() for each in found.values()}
    return {each.strip(" \"'") for each in re.split(r"[,;|\t:{}\[\]]", text)}


def _documents(text: str) -> Iterator[Any]:
    """Parse a text as JSON, or as a JSON document on each line; yields nothing for other texts."""
    if not text.lstrip().startswith(("{", "[")):
        return
    try:
        yield json.loads(text)
    except ValueError:
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _with_pseudonym(value: str, key: str | None) -> frozenset[str]:
    return frozenset({value} if key is None else {value, pseudonym(value, key)})


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _may_hold_text(kind: pa.DataType) -> bool:
    """Whether values of a type are texts or bytes, or lists of either, or of tensors with their bytes in `data`."""
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type):
        return bool(kind.value_type.get_field_index(DATA) >= 0)
    return _is_text(kind) or _is_bytes(kind)


def _contains(column: pa.Array, text: str) -> pa.Array:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return pc.match_substring(column, text)
    items = pc.list_flatten(column)
    if pa.types.is_struct(items.type):
        items = pc.struct_field(items, DATA)
    found = pc.fill_null(pc.match_substring(items, text), False)
    inside = pc.filter(pc.list_parent_indices(column), found)
    rows = pa.array(range(len(column)), pa.int64())
    return pc.is_in(rows, value_set=inside.cast(pa.int64()))
