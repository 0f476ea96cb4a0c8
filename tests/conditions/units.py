"""Units as they come in life: once, returning, few, unequal, or one of them broken. A level has to hold for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from scipy.special import ndtri

Ids = npt.NDArray[np.uint64]
_ONCE = 2**63  # so many that none comes twice


@dataclass(frozen=True, slots=True)
class Units:
    """Population of units, the same one however often it is drawn from.

    count: units; None: each request has one of its own. spread: of the logarithm of how often a unit comes; 0: all alike.
    broken: units whose every request fails by their own fault, whichever version answers.
    """

    name: str
    count: int | None
    spread: float = 0.0
    broken: int = 0

    def draw(self, rng: np.random.Generator, requests: int) -> Ids:
        """Draw the unit of each request, (requests,)."""
        if self.count is None:
            return rng.integers(_ONCE, size=requests, dtype=np.uint64)
        if not self.spread:
            return rng.integers(self.count, size=requests, dtype=np.uint64)
        ranks = (np.arange(self.count) + 0.5) / self.count
        weights = np.exp(self.spread * ndtri(ranks))  # lognormal, with no luck in it
        return rng.choice(self.count, size=requests, p=weights / weights.sum()).astype(np.uint64)

    def fails(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Say of each unit whether it is broken; where units come unequally, the broken ones come about as often as the median."""
        first = 0 if self.count is None else self.count // 2
        units = np.asarray(ids, dtype=np.uint64)
        broken: npt.NDArray[np.bool_] = (units >= first) & (units < first + self.broken)
        return broken


def level_of(ids: npt.ArrayLike, *, salt: int = 0) -> npt.NDArray[np.float64]:
    """Level of each unit, which it has whenever it comes: standard normal over units.

    salt: another one gives levels that are independent of these, such as the arm that a unit is split to.
    """
    mixed = np.asarray(ids, dtype=np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    levels: npt.NDArray[np.float64] = ndtri(uniform)
    return levels


def in_arm(ids: npt.ArrayLike, share: float, *, salt: int = 1) -> npt.NDArray[np.bool_]:
    """Split units by their id: True for those of an arm that has `share` of them, at each of their requests."""
    arm: npt.NDArray[np.bool_] = level_of(ids, salt=salt) < ndtri(share)
    return arm


ONCE = Units("once", None)
RETURNING = Units("returning", 2_000)
FEW = Units("few", 8)
HEAVY_TAILED = Units("heavy-tailed", 2_000, spread=2.0)
ONE_BROKEN = Units("one broken", 100, broken=1)
ALL = (ONCE, RETURNING, FEW, HEAVY_TAILED, ONE_BROKEN)


def parameters(*names: str) -> list[Any]:
    """Parameters of a test: the named populations, all of them if none is named."""
    return [pytest.param(units, id=units.name) for units in ALL if not names or units.name in names]


def populations(*, least: int = 1, most: int = 500) -> st.SearchStrategy[Units]:
    """Populations of any size within the bounds, equal or not, or of units that come once."""
    returning = st.builds(
        Units, st.just("any"), st.integers(least, most), spread=st.sampled_from([0.0, 1.0, 2.0])
    )
    return st.one_of(st.just(ONCE), returning)
