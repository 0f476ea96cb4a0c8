"""Requests that differ in nothing but the numbers of their raw tensors, as those of one client do, call after call.

What such a request says beside its numbers is read once and kept by its bytes; of the next one like it only the numbers are
read, in a third of the time or a quarter. A request with an id or with parameters of its own is not like the next, and nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from ray_apps.predictor.protocol.json import InferRequest

__all__ = ["Form", "Forms", "may_come_again"]

MAX_FORMS = 256
MAX_FORM_BYTES = 1 << 10
"""Of what a request says beside its numbers."""
_NUMERIC = {"i", "u", "f"}
_COMMON = {"binary_data_output"}
"""Parameters that are the same in all requests of a client."""

T = TypeVar("T")


class _Numbers(NamedTuple):
    """A tensor, and where its numbers are in a request."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    begin: int
    end: int


class Form:
    """A request without its numbers.

    request: one that may come again. places: where the bytes of its tensors begin and end, in what is to be read.
    """

    __slots__ = ("_request", "_tensors")

    def __init__(self, request: InferRequest, places: Iterable[tuple[int, int]]) -> None:
        self._request = request.with_inputs({})
        self._tensors = [
            _Numbers(name, array.dtype, array.shape, begin, end)
            for (name, array), (begin, end) in zip(request.inputs.items(), places, strict=True)
        ]

    def fill(self, data: bytes | memoryview) -> InferRequest:
        """The request with the numbers in `data`, which is as long as that which the form was made of."""
        return self._request.with_inputs(
            {
                name: np.ndarray(shape, dtype, bytearray(data[begin:end]))  # the model's own to write to
                for name, dtype, shape, begin, end in self._tensors
            }
        )


def may_come_again(request: InferRequest) -> bool:
    """Whether another request may differ from this one in nothing but its numbers."""
    kinds = {array.dtype.kind for array in request.inputs.values()}
    return request.id is None and request.parameters.keys() <= _COMMON and bool(kinds) and kinds <= _NUMERIC


class Forms(Generic[T]):
    """What is known of the forms that came lately, by a key; of one that came once, only that."""

    def __init__(self) -> None:
        self._known: dict[Hashable, T | None] = {}
        self.get = self._known.get

    def came_before(self, key: Hashable) -> bool:
        """Whether this form did, so that it is worth to be kept."""
        if key in self._known:
            return True
        self.keep(key, None)
        return False

    def keep(self, key: Hashable, known: T | None) -> None:
        """Know it from now on; where there is no room for one more, the others are forgotten."""
        if key not in self._known and len(self._known) >= MAX_FORMS:
            self._known.clear()
        self._known[key] = known
