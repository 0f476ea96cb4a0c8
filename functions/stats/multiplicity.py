"""Corrections for multiple testing: which of many p-values to reject, at once or one after the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


def benjamini_hochberg(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return q-values (Benjamini–Hochberg): rejecting those at or below alpha keeps the expected share of false rejections within alpha.

    p_values: (tests,), independent or positively dependent. With no true effect at all, the chance of any rejection
        is within alpha too.
    Raises: ValueError if one is not in [0, 1].
    Source: Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][:3].tolist()}")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return adjusted p-values that bound the chance of any false rejection, under any dependence.

    Raises: ValueError if one is not in [0, 1].
    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][:3].tolist()}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def k_of_n(flags: Sequence[bool], *, k: int, n: int, window: int = 1) -> bool:
    """Say whether at least `k` of the last `n` separate windows were flagged; with fewer than `k` windows it is no.

    flags: of windows that slide by one cohort, oldest first. window: cohorts of a window; those nearer than that share rows, which
    confirm nothing twice. Raises: ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k of n windows needs 1 <= k <= n, got k={k}, n={n}")
    return sum(flags[::-window][:n]) >= k


@dataclass(frozen=True, slots=True)
class LordPlusPlus:
    """Online rule that bounds the share of false ones among all alarms of an endless sequence of tests.

    alpha: bound on that share. start: part of alpha that there is to spend before the first alarm, which bounds the chance of any
    alarm ever where no effect is true, however the tests depend on each other. tests: done so far; alarms: numbers of those that
    raised one, from 1 on.
    Raises: ValueError unless 0 < start <= alpha < 1.
    Source: Ramdas, Yang, Wainwright and Jordan, Online control of the false discovery rate with decaying memory, 2017 (LORD++); the
    sequence of levels is that of Javanmard and Montanari, Online rules for control of false discovery rate, 2018.
    """

    alpha: float = 0.05
    start: float = 0.025
    tests: int = 0
    alarms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.alpha < 1:
            raise ValueError(
                f"a budget needs 0 < start <= alpha < 1, got start={self.start}, alpha={self.alpha}"
            )

    @property
    def level(self) -> float:
        """Level of the next test."""
        number = self.tests + 1
        earned = [self.alpha - self.start] + [self.alpha] * (len(self.alarms) - 1)
        return self.start * _part(number) + sum(
            amount * _part(number - alarm) for amount, alarm in zip(earned, self.alarms, strict=False)
        )

    @property
    def earned(self) -> float:
        """Sum of all levels that may be spent, by what was there at the start and by the alarms so far."""
        return self.alpha * len(self.alarms) if self.alarms else self.start

    def step(self, p: float) -> tuple["LordPlusPlus", float, bool]:
        """Do one more test: return the rule after it, the level that it was done at, and whether it raises an alarm.

        Raises: ValueError unless p lies in [0, 1].
        """
        if not 0 <= p <= 1:
            raise ValueError(f"a p-value lies in [0, 1], got {p}")
        level, number = self.level, self.tests + 1
        alarms = (*self.alarms, number) if p <= level else self.alarms
        return replace(self, tests=number, alarms=alarms), level, p <= level


def _part(age: int) -> float:
    """Part of an amount that is spent `age` tests after it came; all parts sum to less than 1."""
    return 0.07720838 * math.log(max(age, 2)) / (age * math.exp(math.sqrt(math.log(age))))
