"""Sums that a store keeps, and sums by unit over many cohorts, with the units hashed into slots so that they stay small."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from toque.functions.stats import ClusterSums

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.int64]
# Where there are more units, some share one, which widens no variance and narrows none.
SLOTS = 1 << 17


class SumsStore(Protocol):
    """Object store that keeps sums."""

    def find(self, key: str) -> bytes | None:
        """Find an object by its key, or return None."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite an object under its key."""
        ...


class KeptSums(BaseModel):
    """Sums up to some time that a store keeps, so that a reader goes on there; they can be made again from what was summed."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def find(cls, store: SumsStore, key: str) -> Self | None:
        """Find the sums that are kept under a key. Raises: ValidationError if they are no sums of this kind."""
        kept = store.find(key)
        return None if kept is None else cls.model_validate_json(kept)

    def put(self, store: SumsStore, key: str) -> None:
        """Keep the sums under a key, in place of those before."""
        store.put(key, self.model_dump_json().encode())


class SlotSums(BaseModel):
    """Sums of one or more columns by slot, a unit's being the last bits of its hash: a unit that comes back meets its own.

    They pool by `+`. slots: sorted, uint32 little-endian. columns: of each slot, float64 little-endian; without one, a set of units.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    slots: bytes = b""
    columns: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, units: Hashes, *columns: Floats) -> Self:
        """Sum columns (rows,) by the unit of each row, of which the hashes are given."""
        return cls._of_slots((units & (SLOTS - 1)).astype("<u4"), *columns)

    @classmethod
    def _of_slots(cls, slots: npt.NDArray[np.uint32], *columns: Floats) -> Self:
        unique, index = np.unique(slots, return_inverse=True)
        sums = (np.bincount(index, weights=column, minlength=len(unique)) for column in columns)
        return cls(
            slots=unique.astype("<u4").tobytes(), columns=tuple(one.astype("<f8").tobytes() for one in sums)
        )

    def __add__(self, other: Self) -> Self:
        if not len(self) or not len(other):
            return self if len(self) else other
        slots = np.frombuffer(self.slots + other.slots, dtype="<u4")
        pairs = zip(self.columns, other.columns, strict=True)
        return self._of_slots(slots, *(np.frombuffer(mine + theirs, dtype="<f8") for mine, theirs in pairs))

    def __len__(self) -> int:
        return len(self.slots) // 4

    def first(self, units: Hashes, *columns: Floats) -> Self:
        """Add the units that are not in it yet, each by the first of its rows."""
        slots, rows = np.unique((units & (SLOTS - 1)).astype("<u4"), return_index=True)
        new = rows[~np.isin(slots, np.frombuffer(self.slots, dtype="<u4"))]
        return self + self.of(units[new], *(column[new] for column in columns))

    def column(self, index: int) -> Floats:
        """Return one column of sums, (slots,)."""
        return np.frombuffer(self.columns[index], dtype="<f8") if self.columns else np.zeros(0)

    def clusters(self) -> ClusterSums:
        """Take each slot as a cluster; the columns are its sum of values and its rows."""
        return ClusterSums.of_sums(self.column(0), self.column(1)) if len(self) else ClusterSums()
