"""Value types of features under Feast's names, with their forms in Arrow and in a packed row."""

from enum import StrEnum

import pyarrow as pa


class DType(StrEnum):
    """Value type of a feature or join key."""

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

Float64 = DType.FLOAT64
Float32 = DType.FLOAT32
Int64 = DType.INT64
Int32 = DType.INT32
Bool = DType.BOOL
String = DType.STRING
UnixTimestamp = DType.UNIX_TIMESTAMP
