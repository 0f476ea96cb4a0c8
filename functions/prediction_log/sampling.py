"""Samples of predictions that do not depend on who draws them: by a hash of the prediction's id."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

__all__ = ["is_sampled"]

_BYTES: Final = 8


def is_sampled(prediction_id: str, share: float) -> bool:
    """Whether a prediction is in the sample of this share of all.

    Every process that asks gets the same answer, and a smaller sample is part of a larger one.
    share: from 0, none, to 1, all.
    """
    found = blake2b(b"sample\0" + prediction_id.encode(), digest_size=_BYTES).digest()
    return int.from_bytes(found, "big") < share * (1 << 8 * _BYTES)
