"""Detection of a column that changed its unit: its quartiles jump to where a known conversion puts them.

Weather halves overnight too. So F to C and the like are looked for only in columns whose unit is declared, and only from that
unit; in all others factors of eight and more are, which the world does not bring by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toque.functions.stats.moments import Floats

JUMP = 2.6
"""Spreads between cohorts from which a move is a jump."""

_NEAR_COHORTS = 14  # last cohorts, over which a season hardly moves
# A conversion must bring the quartiles so many times nearer than the old unit does.
_MIN_RATIO, _MIN_RATIO_UNDECLARED = 2.0, 4.0
_LARGE = 8.0  # smallest factor that is looked for without a declared unit
_MAD_TO_SD = 1.4826


@dataclass(frozen=True, slots=True)
class Conversion:
    """Change of unit: new value = slope · old value + offset."""

    source: str
    target: str
    slope: float
    offset: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether the conversion is looked for where no unit is declared."""
        return self.slope >= _LARGE or self.slope <= 1 / _LARGE or self.slope == 1


@dataclass(frozen=True, slots=True)
class Jump:
    """Distance that the quartiles moved, in spreads between cohorts, and the change of unit that explains it, if any."""

    spreads: float
    conversion: Conversion | None

    @property
    def is_jump(self) -> bool:
        """Whether neighbouring cohorts seldom lie so far apart."""
        return self.spreads > JUMP


_FORWARD = (
    Conversion("F", "C", 5 / 9, -160 / 9),
    Conversion("F", "K", 5 / 9, 273.15 - 160 / 9),
    Conversion("C", "K", 1.0, 273.15),
    Conversion("in", "mm", 25.4),
    Conversion("inHg", "hPa", 33.8639),
    Conversion("min", "s", 60.0),
    Conversion("h", "min", 60.0),
    Conversion("share", "percent", 100.0),
    Conversion("unit", "thousandth", 1_000.0),
)
CONVERSIONS: tuple[Conversion, ...] = (
    *_FORWARD,
    *(Conversion(one.target, one.source, 1 / one.slope, -one.offset / one.slope) for one in _FORWARD),
)
"""The changes of unit that are looked for, there and back. Miles to kilometres is not: a windy day does as much."""

UNITS = frozenset(one.source for one in CONVERSIONS)


def jump_of(past: Sequence[Sequence[float]], now: Sequence[float], *, unit: str | None = None) -> Jump | None:
    """Measure how far the quartiles of a column jumped; None if it does not vary, so that its unit cannot be known.

    past: quartiles of the last cohorts, (cohorts, 3), oldest first, at least two; now: (3,). unit: one of `UNITS`.
    """
    before, here = np.array(past[-_NEAR_COHORTS:], dtype=np.float64), np.array(now, dtype=np.float64)
    middle: Floats = np.median(before, axis=0)
    width = float(middle[-1] - middle[0])
    if width <= 0:
        return None
    # The largest spread of the three quartiles counts for all: a quartile that happened to vary little must not make jumps.
    spread = max(float(np.median(np.abs(before - middle), axis=0).max()) * _MAD_TO_SD, 0.02 * width)
    moved = float(np.abs(here - middle).max()) / spread
    return Jump(moved, _explaining(middle, here, spread, unit) if moved > JUMP else None)


def _explaining(middle: Floats, here: Floats, spread: float, unit: str | None) -> Conversion | None:
    """Find the conversion that brings the quartiles nearest, if far nearer than without it."""
    looked_for = [one for one in CONVERSIONS if (one.source == unit if unit is not None else one.is_large)]
    distances = [
        float(np.abs(here - (one.slope * middle + one.offset)).max()) / (spread * one.slope)
        for one in looked_for
    ]
    ratio = _MIN_RATIO if unit is not None else _MIN_RATIO_UNDECLARED
    moved = float(np.abs(here - middle).max()) / spread
    best = int(np.argmin(distances))
    return looked_for[best] if distances[best] <= min(JUMP, moved / ratio) else None
