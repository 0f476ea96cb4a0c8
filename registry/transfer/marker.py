"""Marker in a copy: what it is a copy of, up to when it is whole, and what was being written when it stopped."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from toque.registry.errors import Damaged, NewerFormat

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore

FOLDER: Final = "copies/"
_KEY = f"{FOLDER}marker.json"
_IN_FLIGHT = f"{FOLDER}in-flight.json"
_FORMAT = 1


class CopyMarker(BaseModel):
    """Record of a copy, in the copy.

    source: url of the store without its settings. whole_at: moment of the source that the copy holds, by the source's
    clock; None until the first copy ended. under_way: whether a copy has begun and not ended; what is here is then the
    store of some moment, `in_flight` left aside.
    """

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    source: str
    whole_at: datetime | None = None
    under_way: bool = False


class _InFlight(BaseModel):
    """Keys of the batch of entries and commits that is being written."""

    keys: tuple[str, ...] = ()


def address(store: ObjectStore) -> str:
    """Address of a store: its url without settings such as an endpoint."""
    return store.url.partition("?")[0]


def find_marker(store: ObjectStore) -> CopyMarker | None:
    """Find the marker of a copy; None in a store that is none. Raises: Damaged; NewerFormat."""
    data = store.find(_KEY)
    if data is None:
        return None
    try:
        marker = CopyMarker.model_validate_json(data)
    except ValidationError as error:
        raise Damaged(f"{_KEY} in {store.url} is not readable: {error}") from error
    if marker.format > _FORMAT:
        raise NewerFormat(f"{_KEY} in {store.url}", marker.format, _FORMAT)
    return marker


def put_marker(store: ObjectStore, marker: CopyMarker) -> None:
    """Write the marker of a copy."""
    store.put(_KEY, marker.model_dump_json().encode())


def forget_marker(store: ObjectStore) -> None:
    """Remove the marker: the copy is a store of its own from now on."""
    for key in (_IN_FLIGHT, _KEY):
        store.delete(key)


def put_in_flight(store: ObjectStore, keys: tuple[str, ...]) -> None:
    """Write which entries and commits are about to be written."""
    store.put(_IN_FLIGHT, _InFlight(keys=keys).model_dump_json().encode())


def in_flight(store: ObjectStore) -> frozenset[str]:
    """Read which entries and commits were about to be written when a copy stopped."""
    data = store.find(_IN_FLIGHT)
    return frozenset() if data is None else frozenset(_InFlight.model_validate_json(data).keys)
