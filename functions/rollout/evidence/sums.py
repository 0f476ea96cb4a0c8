"""Sums of which a rollout's evidence is made; they pool by `+`, so that the rows are read once.

A loss difference is champion minus challenger on one labelled request: positive means the challenger is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.evidence.live import LiveEvidence
from toque.functions.stats import ClusterSums, SeriesSums
from toque.functions.stats.comparison.cluster_sums import Pooled, exact_sum

Floats = npt.NDArray[np.float64]
_MADE_UP = 2  # units at either end: with one, an equal challenger is promoted more often than alpha where one label in 70 decides


class PairedLoss(Pooled):
    """Paired loss differences, summed by unit within a cohort and by cohort, the cohorts in the order of time.

    by_returning_unit: summed by unit over all cohorts, one that comes back being one unit; empty in sums of before.
    requests: what the champion answered in these cohorts. pairs: those the challenger scored too, both with a
    number; labelled or not. challenger_unanswered, champion_unanswered: requests that both scored, only one of them with a
    number. champion_loss, challenger_loss: sums over the labelled pairs. possible: the most by which the losses of a pair could
    have differed, whatever its label; 0 where nothing bounds it, and in sums of before.
    """

    by_unit: ClusterSums = ClusterSums()
    by_cohort: SeriesSums = SeriesSums()
    by_returning_unit: ClusterSums = ClusterSums()
    champion_loss: float = 0.0
    challenger_loss: float = 0.0
    pairs: int = 0
    requests: int = 0
    champion_unanswered: int = 0
    challenger_unanswered: int = 0
    possible: float = 0.0

    @classmethod
    def of_cohort(
        cls,
        champion: Floats,
        challenger: Floats,
        units: Sequence[str],
        *,
        pairs: int,
        requests: int,
        possible: float = 0.0,
    ) -> Self:
        """Sum one cohort from the losses of both versions on the same labelled requests, each (rows,)."""
        difference = champion - challenger
        return cls(
            by_unit=ClusterSums.of(difference, units),
            by_cohort=SeriesSums.one(exact_sum(difference), len(difference)),
            champion_loss=exact_sum(champion),
            challenger_loss=exact_sum(challenger),
            pairs=pairs,
            requests=requests,
            possible=possible,
        )

    def __add__(self, other: Self) -> Self:
        return self.pooled(other, possible=max(self.possible, other.possible))

    @property
    def labels(self) -> int:
        """Number of paired labels: the sample size."""
        return self.by_unit.rows

    @property
    def unit_error(self) -> float:
        """Standard error of the mean difference, robust to dependence within a unit, over all cohorts where that was summed."""
        return self._error(ClusterSums())

    @property
    def cautious_error(self) -> float:
        """Standard error with two made-up units at either end of what was possible: a rare label that did not come yet has no variance."""
        ends = (-self.possible, self.possible) * _MADE_UP if self.possible else ()
        return self._error(sum((ClusterSums.one(end, 1) for end in ends), ClusterSums()))

    def _error(self, made_up: ClusterSums) -> float:
        summed = [self.by_unit, *([self.by_returning_unit] if self.by_returning_unit.rows else [])]
        return max(
            (sums + made_up).standard_error() * (sums.rows + made_up.rows) / sums.rows for sums in summed
        )


class ArmCounts(Pooled):
    """Requests of one stage by arm. Errors and slow answers are units that met one, each counted once over the split.

    champion_unanswered, challenger_unanswered: requests that met an error; 0 in evidence of before they were counted.
    """

    champion: int = 0
    challenger: int = 0
    champion_errors: int = 0
    challenger_errors: int = 0
    champion_slow: int = 0
    challenger_slow: int = 0
    champion_unanswered: int = 0
    challenger_unanswered: int = 0


class UnitCounts(BaseModel):
    """Units that met the canary's split, each counted once, in the arm that it met first."""

    model_config = ConfigDict(frozen=True)

    champion: int = 0
    challenger: int = 0


class MetricSums(Pooled):
    """Sums of a business metric of both arms of a canary, compared within each cohort: a storm meets both arms alike.

    rows: with a value, of both arms. requests: answered, with or without one. difference: by cohort, challenger less
    champion, weighted by the cohort's rows. noise: variance of rows times the difference, as if a unit of each cohort were
    another one; observations: how many units that makes. unit_noise: the same variance where a unit is one over all cohorts.
    champion_units, challenger_units: units behind it. The last three are 0, and units summed over cohorts, in sums of before.
    champion_total, challenger_total, champion_rows: for the means that a person reads. too_large: values beyond `LARGEST`, with
    which nothing is judged.
    """

    rows: int = 0
    requests: int = 0
    difference: SeriesSums = SeriesSums()
    noise: float = 0.0
    observations: int = 0
    unit_noise: float = 0.0
    champion_units: int = 0
    challenger_units: int = 0
    champion_total: float = 0.0
    challenger_total: float = 0.0
    champion_rows: int = 0
    too_large: int = 0

    @classmethod
    def of_cohort(
        cls,
        champion: ClusterSums,
        challenger: ClusterSums,
        *,
        requests: int,
        bounds: tuple[float, float] | None = None,
    ) -> Self:
        """Sum one cohort from the values of each arm, clustered by unit; an arm needs two units.

        bounds: least and greatest value that there can be; None: not known.
        """
        if min(champion.clusters, challenger.clusters) < 2:  # noqa: PLR2004 - a variance needs two
            return cls(requests=requests)
        rows = champion.rows + challenger.rows
        gap = challenger.mean - champion.mean
        variance = _variance(champion, challenger, bounds)
        return cls(
            rows=rows,
            requests=requests,
            difference=SeriesSums.one(gap * rows, rows),
            noise=rows * rows * variance,
            observations=champion.clusters + challenger.clusters,
            champion_units=champion.clusters,
            challenger_units=challenger.clusters,
            champion_total=champion.total,
            challenger_total=challenger.total,
            champion_rows=champion.rows,
        )


def _variance(champion: ClusterSums, challenger: ClusterSums, bounds: tuple[float, float] | None) -> float:
    """Variance of the difference of two arms' means, where neither arm is taken to vary less than both together do.

    A few units without a rare event would seem certain. For the same reason each arm gets a made-up unit at each bound.
    """
    made_up = sum((ClusterSums.one(bound, 1) for bound in bounds or ()), ClusterSums())

    def of_a_row(sums: ClusterSums) -> float:
        return (sums + made_up).standard_error() ** 2 * (sums + made_up).rows

    both = of_a_row(champion + challenger)
    return sum(max(of_a_row(arm), both) / arm.rows for arm in (champion, challenger))


class SloSums(BaseModel):
    """Answers and bad ones of an objective: in its window, and in each long and short window of its burn rates.

    without_challenger: as `recent`, of answers by others; empty where nobody counted them.
    """

    model_config = ConfigDict(frozen=True)

    answers: int = 0
    bad: int = 0
    recent: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    without_challenger: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()


class LateRows(Pooled):
    """Answers and labels of closed cohorts that came too late for their sums, as seen one cohort later.

    cohorts: that were looked at again. rows, labels: of them, by now; late_rows, late_labels: those among them that are not
    summed.
    """

    cohorts: int = 0
    rows: int = 0
    late_rows: int = 0
    labels: int = 0
    late_labels: int = 0


class Evidence(BaseModel):
    """Evidence for one decision, complete together with the policy, the state and the time.

    champion: the version that answers now. challenger_problem: why the challenger cannot be served, if so.
    loss: scored cohorts of shadow and canary. shadow, canary: counts of each stage, never pooled (their splits differ).
    units: of the canary's split. canary_share: the canary's declared share of what it and the champion answer together; None
    where it was not noted: then the policy's. metrics: by guardrail, and by `exposure` of it. slos: by objective.
    live: counts of the last minutes; None where nobody counts, or Redis is away. late: what came too late to be in the sums.
    rivals: the evidence on each other challenger that is still in the shadow, by version.
    """

    model_config = ConfigDict(frozen=True)

    champion: int | None
    challenger_problem: str | None = None
    loss: PairedLoss = PairedLoss()
    shadow: ArmCounts = ArmCounts()
    canary: ArmCounts = ArmCounts()
    units: UnitCounts = UnitCounts()
    canary_share: float | None = None
    metrics: dict[str, MetricSums] = {}
    slos: dict[str, SloSums] = {}
    live: LiveEvidence | None = None
    late: LateRows = LateRows()
    rivals: dict[int, Evidence] = {}
