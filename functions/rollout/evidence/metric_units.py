"""Units behind a business metric: what each adds to the difference of the arms, over all cohorts of a split.

A unit that comes back is one observation, however often. The difference is a sum over units of `influence`: its residual in each
cohort, weighted as the cohort and its arm are (the delta method of a ratio, Σ values over Σ rows). The variance is the sum of
their squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.evidence.sums import MetricSums
from toque.functions.stats import ClusterSums
from toque.functions.stats.comparison.cluster_sums import exact_sum

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.int64]
SLOTS = (
    1 << 17
)  # of an arm: where there are more units, some share one, which widens no variance and narrows none
_BYTES = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


@dataclass(frozen=True, slots=True)
class MetricArm:
    """Values of one arm in one cohort, by unit: hash, sum and rows of each, (units,). too_large: values beyond `LARGEST`."""

    unit: Hashes
    total: Floats
    rows: Floats
    too_large: int = 0

    @classmethod
    def of(cls, values: Floats, units: Hashes, *, too_large: int = 0) -> Self:
        """Sum `values` (rows,), held within `LARGEST`, by the unit of each row."""
        unit, index = np.unique(units, return_inverse=True)
        total, rows = np.bincount(index, weights=values), np.bincount(index)
        return cls(unit, total.astype(np.float64), rows.astype(np.float64), too_large)

    @property
    def sums(self) -> ClusterSums:
        """The values clustered by unit."""
        return ClusterSums.of_sums(self.total, self.rows)


@dataclass(frozen=True, slots=True)
class MetricCohort:
    """Values of both arms in one cohort. requests: answered; bounds: least and greatest value that there can be, or None."""

    champion: MetricArm
    challenger: MetricArm
    requests: int
    bounds: tuple[float, float] | None = None

    def sums(self) -> MetricSums:
        """Sum the cohort, each unit being one of this cohort."""
        sums = MetricSums.of_cohort(
            self.champion.sums, self.challenger.sums, requests=self.requests, bounds=self.bounds
        )
        return sums.model_copy(update={"too_large": self.champion.too_large + self.challenger.too_large})


class ArmUnits(BaseModel):
    """Units of one arm over the cohorts so far.

    slots: sorted, uint32 little-endian, of the units' hashes; influence: of each, float64. made_up: influence of a unit that had
    each bound in every cohort. rows, observations: summed over cohorts.
    """

    model_config = _BYTES

    slots: bytes = b""
    influence: bytes = b""
    made_up: tuple[float, ...] = ()
    rows: int = 0
    observations: int = 0

    @property
    def units(self) -> int:
        """Number of units so far, at most `SLOTS`."""
        return len(self.slots) // 4

    def plus(self, arm: MetricArm, all_rows: float, bounds: tuple[float, ...]) -> Self:
        """Add a cohort, of `all_rows` rows in both arms."""
        count, rows = len(arm.unit), float(arm.rows.sum())
        weight = all_rows / rows
        mean = exact_sum(arm.total) / rows
        added = weight * np.sqrt(count / (count - 1)) * (arm.total - arm.rows * mean)
        slots = np.concatenate([self._slots(), (arm.unit & (SLOTS - 1)).astype("<u4")])
        unit, index = np.unique(slots, return_inverse=True)
        influence = np.bincount(index, weights=np.concatenate([self.of_units(), added]))
        typical = weight * rows / count
        before = self.made_up or (0.0,) * len(bounds)
        return self.model_copy(
            update={
                "slots": unit.astype("<u4").tobytes(),
                "influence": influence.astype("<f8").tobytes(),
                "made_up": tuple(
                    sum_ + typical * (bound - mean) for sum_, bound in zip(before, bounds, strict=True)
                ),
                "rows": self.rows + int(rows),
                "observations": self.observations + count,
            }
        )

    def of_units(self) -> Floats:
        """Influence of each unit, (units,)."""
        return np.frombuffer(self.influence, dtype="<f8")

    def made_up_noise(self, cohorts: int) -> float:
        """Variance that made-up units add: one at each bound, which comes as often as the units do."""
        often = self.observations / self.units / cohorts
        return exact_sum(np.square(np.array(self.made_up) * often))

    def _slots(self) -> npt.NDArray[np.uint32]:
        return np.frombuffer(self.slots, dtype="<u4")


class MetricUnits(BaseModel):
    """Units of both arms over the cohorts of a split."""

    model_config = ConfigDict(frozen=True)

    champion: ArmUnits = ArmUnits()
    challenger: ArmUnits = ArmUnits()
    cohorts: int = 0

    def plus(self, cohort: MetricCohort) -> Self:
        """Add a cohort; one in which an arm has fewer than two units says nothing, as in `MetricSums`."""
        arms = (cohort.champion, cohort.challenger)
        if min(len(arm.unit) for arm in arms) < 2:  # noqa: PLR2004 - a variance needs two
            return self
        rows = sum(float(arm.rows.sum()) for arm in arms)
        bounds = cohort.bounds or ()
        return self.model_copy(
            update={
                "champion": self.champion.plus(cohort.champion, rows, bounds),
                "challenger": self.challenger.plus(cohort.challenger, rows, bounds),
                "cohorts": self.cohorts + 1,
            }
        )

    def on(self, sums: MetricSums) -> MetricSums:
        """Put the variance by unit, and how many units there are, on the sums of the same cohorts."""
        if not self.cohorts:
            return sums
        return sums.model_copy(
            update={
                "unit_noise": self._noise(),
                "champion_units": self.champion.units,
                "challenger_units": self.challenger.units,
            }
        )

    def _noise(self) -> float:
        """Variance of rows times the difference; neither arm is taken to vary less than both together do."""
        arms = (self.champion, self.challenger)
        rows = sum(arm.rows for arm in arms)
        own = [exact_sum(np.square(arm.of_units())) for arm in arms]
        both = sum(noise * (arm.rows / rows) ** 2 for noise, arm in zip(own, arms, strict=True))
        return sum(
            max(noise, both * rows / arm.rows) + arm.made_up_noise(self.cohorts)
            for noise, arm in zip(own, arms, strict=True)
        )
