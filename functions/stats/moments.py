"""Moments that pool by adding: the count, means and squared deviations of a sample.

`Moments.of(a) + Moments.of(b)` is `Moments.of(a ++ b)` up to rounding, so a stream may be cut anywhere, a day may be
added up from its hours, and the rows are never needed again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def as_floats(values: npt.ArrayLike, what: str = "values") -> Floats:
    """Return a flat float64 array of finite numbers.

    Raises: ValueError if one is NaN or infinite (the message says which), or there are two axes.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1:
        raise ValueError(f"{what} must be one-dimensional, got shape {array.shape}; pass one column")
    array = array.reshape(-1)
    finite = np.isfinite(array)
    if not finite.all():
        at = int(np.argmin(finite))
        raise ValueError(f"{what}[{at}] is {array[at]}; drop or impute what is missing before the test")
    return array


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of a sample.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Self:
        """Sum up a sample (n,). Raises: ValueError if a value is not finite."""
        array = as_floats(values)
        if not len(array):
            return cls()
        mean = float(array.mean())
        return cls(len(array), mean, float(np.square(array - mean).sum()))

    @classmethod
    def of_counts(cls, successes: int, n: int) -> Self:
        """Sum up n values of which `successes` are 1 and the others 0.

        Raises: ValueError unless 0 <= successes <= n.
        """
        if not 0 <= successes <= n:
            raise ValueError(f"successes must lie in 0..n, got {successes} of {n}")
        return cls(n, successes / n, successes * (n - successes) / n) if n else cls()

    @classmethod
    def total(cls, parts: "Sequence[Moments]") -> "Moments":
        """Add up any number of moments at once."""
        n = sum(part.n for part in parts)
        if not n:
            return cls()
        mean = sum(part.n * part.mean for part in parts) / n
        return cls(n, mean, sum(part.m2 + part.n * (part.mean - mean) ** 2 for part in parts))

    def __add__(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        if not n:
            return self
        delta = other.mean - self.mean
        return Moments(
            n, self.mean + delta * other.n / n, self.m2 + other.m2 + delta * delta * self.n * other.n / n
        )

    @property
    def variance(self) -> float:
        """Unbiased variance of the sample. Raises: ValueError below two values."""
        if self.n < 2:  # noqa: PLR2004 - one value does not vary
            raise ValueError(f"variance needs n >= 2, got n={self.n}")
        return self.m2 / (self.n - 1)

    @property
    def standard_deviation(self) -> float:
        """Square root of the variance. Raises: ValueError below two values."""
        return math.sqrt(self.variance)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean. Raises: ValueError below two values."""
        return math.sqrt(self.variance / self.n)


@dataclass(frozen=True, slots=True)
class CoMoments:
    """Moments of pairs (y, x): of y, of x, and the sum of the products of their deviations."""

    y: Moments = Moments()
    x: Moments = Moments()
    cross: float = 0.0

    @classmethod
    def of(cls, y: npt.ArrayLike, x: npt.ArrayLike) -> Self:
        """Sum up pairs, (n,) each. Raises: ValueError if the lengths differ or a value is not finite."""
        first, second = as_floats(y, "y"), as_floats(x, "x")
        if len(first) != len(second):
            raise ValueError(
                f"y and x are pairs, got {len(first)} and {len(second)} values; give each unit both"
            )
        if not len(first):
            return cls()
        cross = float((first - first.mean()) @ (second - second.mean()))
        return cls(Moments.of(first), Moments.of(second), cross)

    def __add__(self, other: "CoMoments") -> "CoMoments":
        n = self.n + other.n
        if not n:
            return self
        shift = (other.y.mean - self.y.mean) * (other.x.mean - self.x.mean) * self.n * other.n / n
        return CoMoments(self.y + other.y, self.x + other.x, self.cross + other.cross + shift)

    @property
    def n(self) -> int:
        """Number of pairs in the sample."""
        return self.y.n

    @property
    def covariance(self) -> float:
        """Unbiased covariance of the pairs. Raises: ValueError below two pairs."""
        if self.n < 2:  # noqa: PLR2004 - one pair does not vary
            raise ValueError(f"covariance needs n >= 2, got n={self.n}")
        return self.cross / (self.n - 1)

    def combined(self, a: float, b: float) -> Moments:
        """Compute the moments of a·y + b·x without the pairs."""
        m2 = a * a * self.y.m2 + b * b * self.x.m2 + 2 * a * b * self.cross
        return Moments(self.n, a * self.y.mean + b * self.x.mean, max(m2, 0.0))


def as_moments(sample: Any) -> Moments:
    """Return Moments as they are, and anything else summed up."""
    return sample if isinstance(sample, Moments) else Moments.of(sample)


def as_comoments(sample: Any) -> CoMoments:
    """Return CoMoments as they are, and a pair (y, x) summed up."""
    if isinstance(sample, CoMoments):
        return sample
    y, x = sample
    return CoMoments.of(y, x)
