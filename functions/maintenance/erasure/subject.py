"""Subject of an erasure: an entity, a unit or both, and how it is recognised in rows, JSON and bytes.

It is known by exact values: those of columns and JSON fields of its names, and of rows that sources kept aside. A text that mentions it
may be about somebody else, so texts are searched on request alone, and for whole words: an id is often part of another one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from toque.featurestore.definitions.stream_source import ASIDE_REASON, ASIDE_ROW
from toque.featurestore.sources.rows import REASON, ROW
from toque.functions.prediction_log import pseudonym

UNIT, ENTITIES, PREDICTION_ID, DATA = "unit", "entities", "prediction_id", "data"
TEXT = "text of "
"""Beginning of a reason by which a row is found, before the name of a column: it is mentioned there and no more."""
_KEPT_ASIDE = ((REASON, ROW), (ASIDE_REASON, ASIDE_ROW))
"""Columns by which rows that were kept aside are known, and their text: in a table of their own, and among a stream's events."""
MIN_TEXT = 8
"""Characters from which a value is searched in texts; a shorter one only under its name."""
_JOINTS = r"[-.+@'%~&]"
"""Characters that continue an id where a word character follows or precedes: `user-1` is no word of `user-1-b`, but of `user-1.`."""
_NOBODY = {"", "null", "[]", "{}", "[{}]"}
_SEPARATORS = ",;\t|"
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"?|-?[0-9.]+')
_WHOLE = re.compile(r"-?[0-9]+\.0+")
_ESCAPES = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")


class Subject(BaseModel, frozen=True, extra="forbid"):
    """Person or thing to erase: values by join key, the unit of the traffic split, or both."""

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

    values: accepted values by join key, all of which an entity has; units: accepted units; ids: of the subject's predictions;
    text: whether texts that mention a long value count.
    """

    values: dict[str, frozenset[str]]
    units: frozenset[str]
    ids: frozenset[str] = frozenset()
    text: bool = False
    words: tuple[str, ...] = field(init=False, compare=False)
    _words: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _id_values: pa.Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        accepted = frozenset().union(self.units, *self.values.values())
        words = tuple(sorted(word for word in accepted if len(word) >= MIN_TEXT))
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "_words", _whole_words(words) if words else None)
        object.__setattr__(self, "_id_values", pa.array(sorted(self.ids), pa.string()))

    @classmethod
    def of(cls, subject: Subject, *, key: str | None, ids: Iterable[str] = (), text: bool = False) -> Self:
        """Derive the traces of a subject, its pseudonyms included. key: of the pseudonyms in the log, None if there are none."""
        values = {name: _with_pseudonym(value, key) for name, value in subject.entity.items()}
        units = _with_pseudonym(subject.unit, key) if subject.unit is not None else frozenset()
        return cls(values, units, frozenset(ids), text)

    def columns(self, schema: pa.Schema) -> list[str]:
        """Columns of a table in which the subject may stand."""
        named = {*self.values, UNIT, ENTITIES, PREDICTION_ID}
        for pair in _KEPT_ASIDE:
            named |= set(pair) if set(pair) <= set(schema.names) else set()
        searched = self.text and self.words
        return [
            column.name
            for column in schema
            if column.name in named or (searched and _may_hold_text(column.type))
        ]

    def mask(self, rows: pa.Table) -> pa.Array:
        """Tell for each row whether it is about the subject."""
        mask = pa.array([False] * rows.num_rows, pa.bool_())
        for _, matches in self.reasons(rows):
            mask = pc.or_(mask, matches)
        return mask

    def reasons(self, rows: pa.Table) -> Iterator[tuple[str, pa.Array]]:
        """Yield why rows are about the subject, by the names of columns, each with a mask of its rows."""
        columns = {name: rows.column(name).combine_chunks() for name in rows.column_names}
        if self.values and self.values.keys() <= columns.keys():
            masks = [_is_among(columns[name], accepted) for name, accepted in self.values.items()]
            yield ", ".join(sorted(self.values)), reduce(pc.and_, masks)
        if self.units and UNIT in columns:
            yield UNIT, _is_among(columns[UNIT], self.units)
        if self.ids and PREDICTION_ID in columns:
            matches = pc.fill_null(pc.is_in(columns[PREDICTION_ID], value_set=self._id_values), False)
            yield PREDICTION_ID, pc.and_not(matches, self._named_otherwise(columns))
        if self.values and ENTITIES in columns and not pa.types.is_nested(columns[ENTITIES].type):
            yield ENTITIES, _rows_where(columns[ENTITIES], lambda text: self.names(text.encode()))
        for reason, text in _KEPT_ASIDE:
            if {reason, text} <= columns.keys():
                yield text, _rows_where(columns[text], self._in_row_kept_aside)
        yield from self._mentions(columns)

    def _named_otherwise(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        """Tell which rows name a unit or an entity, and so say themselves whose they are: callers choose ids, and two may choose one."""
        some = next(iter(columns.values()))
        mask = pa.array([False] * len(some), pa.bool_())
        if UNIT in columns:
            mask = pc.or_(mask, pc.is_valid(columns[UNIT]))
        if ENTITIES in columns and not pa.types.is_nested(columns[ENTITIES].type):
            mask = pc.or_(mask, _rows_where(columns[ENTITIES], lambda text: text.strip() not in _NOBODY))
        if self.values and self.values.keys() <= columns.keys():
            mask = pc.or_(mask, reduce(pc.or_, (pc.is_valid(columns[name]) for name in self.values)))
        return mask

    def _mentions(self, columns: Mapping[str, pa.Array]) -> Iterator[tuple[str, pa.Array]]:
        if self.text and self.words:
            for name, column in columns.items():
                if _may_hold_text(column.type):
                    yield f"{TEXT}{name}", self._mentions_in(column)

    def _in_row_kept_aside(self, text: str) -> bool:
        """Whether a source's row that was kept aside may be about the subject: it has its values as whole fields.

        Under any name, since the source has names of its own, and such a row is no loss.
        """
        fields = _fields(text)
        entity = bool(self.values) and all(accepted & fields for accepted in self.values.values())
        return entity or bool(self.units & fields)

    def in_document(self, value: Any) -> bool:
        """Whether a JSON value has the subject under its names, at any depth."""
        if isinstance(value, list):
            return any(self.in_document(item) for item in value)
        if not isinstance(value, dict):
            return False
        return self._under_names(value) or any(self.in_document(item) for item in value.values())

    def _under_names(self, value: Mapping[str, Any]) -> bool:
        if self.units and _has(value.get(UNIT), self.units):
            return True
        if not self.values or not self.values.keys() <= value.keys():
            return False
        # Columns of several rows have the values of one row at one place.
        columns = [value[name] for name in self.values]
        if all(isinstance(column, list) for column in columns):
            rows = zip(*columns, strict=False)
            return any(all(map(_has, row, self.values.values())) for row in rows)
        return all(map(_has, columns, self.values.values()))

    def mentions(self, text: str) -> bool:
        """Whether a text holds one of the long values as a whole word, as it is or escaped as JSON does."""
        if self._words is None or not any(word in text or _escaped(word) in text for word in self.words):
            return False
        texts = [_unescaped(text), text] if any("\\" in word for word in self.words) else [_unescaped(text)]
        return any(self._words.search(candidate) for candidate in texts)

    def names(self, data: bytes) -> bool:
        """Whether an object's bytes are JSON that names the subject."""
        return any(self.in_document(document) for document in _documents(data.decode("utf-8", "replace")))

    def in_bytes(self, data: bytes) -> bool:
        """Whether an object's bytes are JSON that names the subject or, where texts count, mention a long value."""
        return self.names(data) or (self.text and self.mentions(data.decode("utf-8", "replace")))

    def _mentions_in(self, column: pa.Array) -> pa.Array:
        """Tell for each row of a column of texts, bytes, or lists of either whether one mentions the subject."""
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            return self._mentioning(column)
        items = pc.list_flatten(column)
        if pa.types.is_struct(items.type):
            items = pc.struct_field(items, DATA)
        inside = pc.filter(pc.list_parent_indices(column), self._mentioning(items))
        return pc.is_in(pa.array(range(len(column)), pa.int64()), value_set=inside.cast(pa.int64()))

    def _mentioning(self, values: pa.Array) -> pa.Array:
        candidates = pa.array([False] * len(values), pa.bool_())
        for spelling in {spelling for word in self.words for spelling in (word, _escaped(word))}:
            candidates = pc.or_(candidates, pc.fill_null(pc.match_substring(values, spelling), False))
        mask = [False] * len(values)
        for index in pc.indices_nonzero(candidates).to_pylist():
            text = values[index].as_py()
            mask[index] = self.mentions(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        return pa.array(mask, pa.bool_())


def _whole_words(words: Iterable[str]) -> re.Pattern[str]:
    spellings = (re.escape(word) for word in words)
    return re.compile(rf"(?<!\w)(?<!\w{_JOINTS})(?:{'|'.join(spellings)})(?!\w|{_JOINTS}\w)")


def _escaped(word: str) -> str:
    return json.dumps(word)[1:-1]


def _unescaped(text: str) -> str:
    """Put letters and spaces in place of JSON's escapes, so that it shows which characters stand beside a word."""
    if "\\" not in text:
        return text
    letters = _ESCAPES.sub(lambda match: chr(int(match[1], 16)) if match[1] else " ", text)
    return letters.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_among(column: pa.Array, accepted: frozenset[str]) -> pa.Array:
    if pa.types.is_nested(column.type):
        return pa.array([False] * len(column), pa.bool_())
    if _is_bytes(column.type):
        spelled = pa.array(sorted(value.encode() for value in accepted), column.type)
        return pc.fill_null(pc.is_in(column, value_set=spelled), False)
    values = column.cast(pa.string())
    return pc.fill_null(pc.is_in(values, value_set=pa.array(sorted(accepted), pa.string())), False)


def _rows_where(column: pa.Array, holds: Callable[[str], bool]) -> pa.Array:
    """Tell for each row of a column of texts whether it `holds`, asking once for each text."""
    answers = {text: holds(text) for text in pc.unique(column).to_pylist() if text}
    return pa.array([answers.get(text, False) for text in column.to_pylist()], pa.bool_())


def _has(value: Any, accepted: frozenset[str]) -> bool:
    """Whether a JSON value, or one of a list, is an accepted one."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, str | int) and str(item) in accepted for item in values)


def _fields(text: str) -> set[str]:
    """Values of a row that was kept aside: those of its JSON at any depth, the fields of a line, or the values of torn JSON."""
    documents = list(_documents(text))
    if documents:
        return {value for document in documents for value in _leaves(document)}
    if text.lstrip().startswith(("{", "[")):
        return set(_torn_values(text))
    lines = text.splitlines()
    rows = (
        row
        for separator in _SEPARATORS
        for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)
    )
    return {value for row in rows for part in row for value in _spellings(part.strip(" \"'"))}


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None:
        yield from _spellings(str(value).strip())


def _torn_values(text: str) -> Iterator[str]:
    """Find the texts and numbers of JSON that lacks an end; names of fields are among them."""
    for token in _TOKENS.findall(text):
        try:
            yield from _leaves(json.loads(token if token[0] != '"' or token.endswith('"') else f'{token}"'))
        except ValueError:
            yield token.strip('"')


def _spellings(text: str) -> Iterator[str]:
    """A value as it is written, and a whole number as one: sources write the id 17 as 17.0, too."""
    yield text
    if _WHOLE.fullmatch(text):
        yield text.partition(".")[0]


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
