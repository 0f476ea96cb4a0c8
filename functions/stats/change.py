"""Detectors of a change in a stream, chiefly of realised loss: CUSUM, Page–Hinkley and ADWIN.

Each is a frozen value; `update(values)` returns the detector after those values, and how a stream is cut into batches
changes nothing. Fields are plain numbers and tuples: `dataclasses.asdict(d)` can be stored and `D(**stored)` read.
`alarms` holds the positions (first value of the stream is 1) at which the detector fired; after one it starts afresh.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy.typing as npt

from toque.functions.stats.moments import Moments, as_floats

_OVERSHOOT = 1.166  # Siegmund's correction: a sum that crosses a limit does not land on it


@dataclass(frozen=True, slots=True)
class Cusum:
    """One-sided cumulative-sum detector (CUSUM): fires when the mean has risen by about `shift` standard deviations.

    mean, sd: of the values while all is well. shift: the rise to be found soonest, in sd.
    threshold: in sd; `Cusum.tuned` picks it from how rare a false alarm shall be.
    Source: Page, Continuous inspection schemes, 1954.
    """

    mean: float
    sd: float
    shift: float = 0.25
    threshold: float = 10.0
    n: int = 0
    level: float = 0.0
    alarms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parameters that could never detect a change."""
        for name in ("sd", "shift", "threshold"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Cusum.{name} must be positive, got {getattr(self, name)}")
        object.__setattr__(self, "alarms", tuple(self.alarms))

    @classmethod
    def tuned(cls, reference: Moments, *, shift: float = 0.25, false_alarm_every: float = 1_000_000) -> Self:
        """Set the threshold so that without a change an alarm comes once in `false_alarm_every` Gaussian values on average.

        Skewed values, as losses of a rare outcome, alarm 4 to 50 times as often.
        reference: moments of the values while all was well; at least 30 of them. One standard error is added to
            their mean, so that a reference that came out low by chance does not alarm for ever after.
        Raises: ValueError if the reference is too small or does not vary.
        Source: Siegmund, Sequential Analysis, 1985 (average run length of a Gaussian CUSUM).
        """
        if reference.n < 30 or reference.m2 == 0:  # noqa: PLR2004 - below it the sd itself is a guess
            raise ValueError(
                f"Cusum.tuned needs a reference of 30 values that vary, got n={reference.n}, m2={reference.m2}"
            )
        threshold = _siegmund_threshold(shift / 2, false_alarm_every)
        mean = reference.mean + reference.standard_error
        return cls(mean, reference.standard_deviation, shift, threshold)

    @property
    def alarm(self) -> bool:
        """Whether the detector has fired."""
        return bool(self.alarms)

    def update(self, values: npt.ArrayLike) -> Self:
        """Return the detector after these values. Raises: ValueError if one is not finite."""
        n, level, alarms = self.n, self.level, list(self.alarms)
        allowance = self.shift / 2
        for value in as_floats(values).tolist():
            n += 1
            level = max(0.0, level + (value - self.mean) / self.sd - allowance)
            if level > self.threshold:
                alarms.append(n)
                level = 0.0
        return replace(self, n=n, level=level, alarms=tuple(alarms))


@dataclass(frozen=True, slots=True)
class PageHinkley:
    """Page–Hinkley change detector: as CUSUM, against the mean of the stream itself, so it needs no reference.

    delta: rise that is tolerated. threshold: cumulative rise that fires. minimum: values before it may fire.
    Source: Page 1954; Hinkley, Inference about the change-point from cumulative sum tests, 1971.
    """

    delta: float = 0.005
    threshold: float = 50.0
    minimum: int = 30
    n: int = 0
    seen: int = 0
    mean: float = 0.0
    total: float = 0.0
    lowest: float = 0.0
    alarms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parameters that could never detect a change."""
        if not self.threshold > 0 or self.delta < 0:
            raise ValueError(
                f"PageHinkley needs threshold > 0 and delta >= 0, got {self.threshold} and {self.delta}"
            )
        object.__setattr__(self, "alarms", tuple(self.alarms))

    @property
    def alarm(self) -> bool:
        """Whether the detector has fired."""
        return bool(self.alarms)

    def update(self, values: npt.ArrayLike) -> Self:
        """Return the detector after these values. Raises: ValueError if one is not finite."""
        state = self
        for value in as_floats(values).tolist():
            state = state._after(value)
        return state

    def _after(self, value: float) -> Self:
        seen = self.seen + 1
        mean = self.mean + (value - self.mean) / seen
        total = self.total + value - mean - self.delta
        lowest = min(self.lowest, total)
        if seen >= self.minimum and total - lowest > self.threshold:
            alarms = (*self.alarms, self.n + 1)
            return replace(self, n=self.n + 1, alarms=alarms, seen=0, mean=0.0, total=0.0, lowest=0.0)
        return replace(self, n=self.n + 1, seen=seen, mean=mean, total=total, lowest=lowest)


Bucket = tuple[int, float, float]
"""Count, mean and sum of squared deviations of a run of values."""


@dataclass(frozen=True, slots=True)
class Adwin:
    """Adaptive-window detector (ADWIN): keeps the longest recent stretch whose halves do not differ, and fires when it must cut.

    delta: bound on the chance of a false cut at each look. bound: largest value; values are held within [0, bound].
    clock: values between looks. minimum: fewest values on either side of a cut. rising_only: fire (and cut) only
    where the newer side is higher, which is what a loss needs.
    Source: Bifet and Gavaldà, Learning from time-changing data with adaptive windowing, 2007 (ADWIN2).
    """

    delta: float = 0.002
    bound: float = 1.0
    clock: int = 32
    minimum: int = 5
    rising_only: bool = False
    n: int = 0
    buckets: tuple[Bucket, ...] = ()
    alarms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parameters that could never detect a change."""
        if not 0 < self.delta < 1 or not self.bound > 0 or self.clock < 1:
            raise ValueError(
                f"Adwin needs 0 < delta < 1, bound > 0, clock >= 1, got {self.delta}, {self.bound}, {self.clock}"
            )
        object.__setattr__(self, "buckets", tuple((int(c), m, s) for c, m, s in self.buckets))
        object.__setattr__(self, "alarms", tuple(self.alarms))

    @property
    def alarm(self) -> bool:
        """Whether the detector has fired."""
        return bool(self.alarms)

    @property
    def window(self) -> Moments:
        """Moments of the values kept, on the scale of the stream."""
        kept = sum((Moments(*bucket) for bucket in self.buckets), Moments())
        return Moments(kept.n, kept.mean * self.bound, kept.m2 * self.bound**2)

    def update(self, values: npt.ArrayLike) -> Self:
        """Return the detector after these values. Raises: ValueError if one is not finite."""
        n, alarms, buckets = self.n, list(self.alarms), [Moments(*bucket) for bucket in self.buckets]
        for value in as_floats(values).tolist():
            n += 1
            buckets.append(Moments(1, min(max(value, 0.0), self.bound) / self.bound, 0.0))
            _compress(buckets)
            if n % self.clock == 0 and self._cut(buckets):
                alarms.append(n)
        plain = tuple((b.n, b.mean, b.m2) for b in buckets)
        return replace(self, n=n, buckets=plain, alarms=tuple(alarms))

    def _cut(self, buckets: list[Moments]) -> bool:
        """Drop the oldest buckets while some cut of the window has sides that differ; say whether any did."""
        fired = False
        while len(buckets) > 1 and self._differs(buckets):
            del buckets[0]
            fired = True
        return fired

    def _differs(self, buckets: list[Moments]) -> bool:
        whole = sum(buckets, Moments())
        log_term = math.log(2 * math.log(max(whole.n, 3)) / self.delta)
        spread = whole.m2 / whole.n
        old_n, old_sum, total = 0, 0.0, whole.mean * whole.n
        for bucket in buckets[:-1]:
            old_n += bucket.n
            old_sum += bucket.mean * bucket.n
            new_n = whole.n - old_n
            if old_n < self.minimum or new_n < self.minimum:
                continue
            rise = (total - old_sum) / new_n - old_sum / old_n
            inverse = 1 / old_n + 1 / new_n
            limit = math.sqrt(2 * inverse * spread * log_term) + 2 / 3 * inverse * log_term
            if (rise if self.rising_only else abs(rise)) > limit:
                return True
        return False


def _compress(buckets: list[Moments], *, same: int = 5) -> None:
    """Merge the two oldest buckets of each size once more than `same` have it; sizes double from new to old."""
    end = len(buckets)
    size = 1
    while True:
        start = end
        while start and buckets[start - 1].n == size:
            start -= 1
        if end - start <= same:
            return
        buckets[start : start + 2] = [buckets[start] + buckets[start + 1]]
        end, size = start + 1, size * 2


def _siegmund_threshold(allowance: float, run_length: float) -> float:
    """Find the threshold in sd at which a Gaussian CUSUM with this allowance runs so long on average without a change."""
    low, high = 0.0, 1_000.0 / allowance
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        exponent = 2 * allowance * (middle + _OVERSHOOT)
        long = exponent > 700 or (math.exp(exponent) - 1 - exponent) / (2 * allowance**2) > run_length  # noqa: PLR2004
        low, high = (low, middle) if long else (middle, high)
    return high
