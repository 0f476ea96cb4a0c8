"""Value types of features, Feast's names for scalars, with their forms in Arrow and in a packed row.

Scalars are the members of `DType`; vectors, lists, decimals and maps are types of their own with parameters. All have a
`value`, the text that definitions record and `parse_type` reads.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import pyarrow as pa

from toque.featurestore.errors import InvalidDefinition

MAX_VECTOR = 65_536
MAX_PRECISION = 38


class DType(StrEnum):
    """Scalar type of a feature or join key."""

    FLOAT64 = "Float64"
    FLOAT32 = "Float32"
    INT64 = "Int64"
    INT32 = "Int32"
    BOOL = "Bool"
    STRING = "String"
    UNIX_TIMESTAMP = "UnixTimestamp"

    @property
    def arrow(self) -> pa.DataType:
        """Arrow type of the column in offline rows; times are microseconds, UTC."""
        return _ARROW[self]

    @property
    def slot(self) -> str:
        """Fixed slot in a packed row, in `struct` notation (a string's slot is its length)."""
        return _SLOTS[self]

    @property
    def is_key(self) -> bool:
        """Whether values compare exactly, so that they may name an entity."""
        return self in {DType.STRING, DType.INT64, DType.INT32, DType.BOOL}

    @property
    def is_number(self) -> bool:
        """Whether values are numbers, which have a range."""
        return self in NUMBERS


@dataclass(frozen=True, slots=True)
class _Composite(ABC):
    """Type with parameters; never a join key."""

    @property
    def is_key(self) -> bool:
        """Whether values may name an entity; never."""
        return False

    @property
    def is_number(self) -> bool:
        """Whether values are numbers, which have a range."""
        return False

    @property
    @abstractmethod
    def value(self) -> str:
        """Text of the type in definitions, such as `Vector(384)`."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Vector(_Composite):
    """Vector of `length` float32 numbers, such as an embedding; a value is null as a whole or not at all.

    finite: whether NaN and infinities are refused.
    Raises: InvalidDefinition.
    """

    length: int
    finite: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MAX_VECTOR:
            raise InvalidDefinition(f"Vector({self.length}): the length is 1 to {MAX_VECTOR}")

    @property
    def value(self) -> str:
        """Text of the type in definitions."""
        return f"Vector({self.length}{'' if self.finite else ', finite=False'})"

    @property
    def arrow(self) -> pa.DataType:
        """Arrow type of the column in offline rows."""
        return pa.list_(pa.float32(), self.length)

    @property
    def slot(self) -> str:
        """Fixed slot in a packed row: the numbers."""
        return f"{4 * self.length}s"


@dataclass(frozen=True, slots=True)
class List(_Composite):
    """List of any number of values of one scalar type, in an order that counts.

    null_items: whether an item may be null; the whole value may in any case.
    Raises: InvalidDefinition.
    """

    item: DType
    null_items: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "item", _scalar("List", self.item, tuple(DType)))

    @property
    def value(self) -> str:
        """Text of the type in definitions."""
        return f"List({self.item.value}{', null_items=True' if self.null_items else ''})"

    @property
    def arrow(self) -> pa.DataType:
        """Arrow type of the column in offline rows."""
        return pa.list_(self.item.arrow)

    @property
    def slot(self) -> str:
        """Fixed slot in a packed row: how many bytes the items take."""
        return "I"


@dataclass(frozen=True, slots=True)
class Map(_Composite):
    """Map of texts to numbers of one type, neither of them null; it has no order, and no key twice.

    Raises: InvalidDefinition.
    """

    item: DType

    def __post_init__(self) -> None:
        object.__setattr__(self, "item", _scalar("Map", self.item, NUMBERS))

    @property
    def value(self) -> str:
        """Text of the type in definitions."""
        return f"Map({self.item.value})"

    @property
    def arrow(self) -> pa.DataType:
        """Arrow type of the column in offline rows."""
        return pa.map_(pa.string(), self.item.arrow)

    @property
    def slot(self) -> str:
        """Fixed slot in a packed row: how many bytes the entries take."""
        return "I"


@dataclass(frozen=True, slots=True)
class Decimal(_Composite):
    """Decimal number of `precision` digits, `scale` of them after the point.

    Raises: InvalidDefinition.
    """

    precision: int
    scale: int

    def __post_init__(self) -> None:
        if not 1 <= self.precision <= MAX_PRECISION or not 0 <= self.scale <= self.precision:
            raise InvalidDefinition(
                f"{self.value}: give 1 to {MAX_PRECISION} digits, and of these how many follow the point"
            )

    @property
    def value(self) -> str:
        """Text of the type in definitions."""
        return f"Decimal({self.precision}, {self.scale})"

    @property
    def arrow(self) -> pa.DataType:
        """Arrow type of the column in offline rows."""
        return pa.decimal128(self.precision, self.scale)

    @property
    def slot(self) -> str:
        """Fixed slot in a packed row: the unscaled number in 16 bytes, as Arrow has it."""
        return "16s"

    @property
    def is_number(self) -> bool:
        """Whether values are numbers, which have a range; always."""
        return True


FeatureType: TypeAlias = DType | Vector | List | Map | Decimal
"""Any value type of a feature."""

NUMBERS = (DType.FLOAT64, DType.FLOAT32, DType.INT64, DType.INT32)
TIMESTAMP = pa.timestamp("us", tz="UTC")

_ARROW = {
    DType.FLOAT64: pa.float64(),
    DType.FLOAT32: pa.float32(),
    DType.INT64: pa.int64(),
    DType.INT32: pa.int32(),
    DType.BOOL: pa.bool_(),
    DType.STRING: pa.string(),
    DType.UNIX_TIMESTAMP: TIMESTAMP,
}

_SLOTS = {
    DType.FLOAT64: "d",
    DType.FLOAT32: "f",
    DType.INT64: "q",
    DType.INT32: "i",
    DType.BOOL: "B",
    DType.STRING: "I",
    DType.UNIX_TIMESTAMP: "q",
}

_PATTERN = re.compile(r"(Vector|List|Map|Decimal)\((\w+)(?:, (?:(\d+)|(finite=False|null_items=True)))?\)")

Float64 = DType.FLOAT64
Float32 = DType.FLOAT32
Int64 = DType.INT64
Int32 = DType.INT32
Bool = DType.BOOL
String = DType.STRING
UnixTimestamp = DType.UNIX_TIMESTAMP


def parse_type(given: FeatureType | str) -> FeatureType:
    """Read a type from its text; return a type as it is.

    Raises: InvalidDefinition for a text that names none.
    """
    if isinstance(given, _Composite):
        return given
    text = str(given)
    if text in _VALUES:
        return _VALUES[text]
    found = _PATTERN.fullmatch(text)
    made = None if found is None else _parsed(*found.groups())
    if made is None or made.value != text:
        names = ", ".join(DType)
        raise InvalidDefinition(
            f"type {text!r} is not known; use {names}, Vector(384), List(Int64), Map(Float64) or Decimal(18, 2)"
        )
    return made


_VALUES: dict[str, DType] = {each.value: each for each in DType}


def _parsed(kind: str, first: str, second: str | None, option: str | None) -> FeatureType | None:
    """Build a type of its parts; None where they do not go together."""
    if kind == "Vector" and first.isdecimal():
        return Vector(int(first), finite=option is None)
    if kind == "Decimal" and first.isdecimal() and second is not None:
        return Decimal(int(first), int(second))
    if kind == "List" and first in _VALUES:
        return List(_VALUES[first], null_items=option is not None)
    if kind == "Map" and first in _VALUES:
        return Map(_VALUES[first])
    return None


def _scalar(what: str, given: Any, allowed: tuple[DType, ...]) -> DType:
    """Check the type of a list's items or a map's values. Raises: InvalidDefinition."""
    if given not in allowed:
        raise InvalidDefinition(f"{what}({given}): its values may be {', '.join(allowed)}")
    return DType(given)
