"""Bandits that send traffic where rewards are, and enough elsewhere to notice a change.

Rewards may come late: an allocation is computed from the moments of whatever rewards are in. The share that an arm had
when a unit was assigned is its propensity; log it, and off-policy estimates stay possible. Do not stop a bandit on
"best with probability .95" (it does so in 61 % of runs without a best arm): use `asymptotic_cs` between two arms.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toque.functions.stats.moments import Moments


@dataclass(frozen=True, slots=True)
class Allocation:
    """Allocation of the traffic: the share of each arm, summing to 1, and the probability that it is the best."""

    shares: Mapping[str, float]
    best: Mapping[str, float]


def thompson(
    arms: Mapping[str, Moments],
    *,
    rng: np.random.Generator,
    floor: float = 0.01,
    draws: int = 10_000,
) -> Allocation:
    """Give each arm the probability that it is the best, but never less than a floor.

    arms: moments of the rewards so far, each reward in [0, 1]; an arm without any is drawn from the prior.
    floor: least share of an arm; at most 1 / arms. draws: from the posteriors.
    Raises: ValueError if there is no arm, a mean lies outside [0, 1] or the floor is too high.
    Source: Thompson 1933; Agrawal and Goyal, Analysis of Thompson sampling, 2012 (rewards in [0, 1]).
    """
    _check(arms, floor)
    means = np.array([arm.mean for arm in arms.values()])
    if not ((means >= 0) & (means <= 1)).all():
        raise ValueError(
            f"rewards lie in [0, 1], got means {dict(zip(arms, means.tolist(), strict=True))}; scale them"
        )
    counts = np.array([arm.n for arm in arms.values()])
    samples = rng.beta(1 + counts * means, 1 + counts * (1 - means), size=(draws, len(arms)))
    best = np.bincount(samples.argmax(axis=1), minlength=len(arms)) / draws
    return _allocation(arms, best, floor)


def epsilon_greedy(arms: Mapping[str, Moments], *, epsilon: float = 0.1) -> Allocation:
    """Give the arm with the highest mean all but `epsilon` of the traffic, which the arms share evenly.

    An arm without a reward counts as the best until it has one; ties share.
    Raises: ValueError if there is no arm or epsilon is not in [0, 1].
    Source: Sutton and Barto, Reinforcement Learning, 2018, section 2.2.
    """
    _check(arms, epsilon / max(len(arms), 1))
    means = np.array([arm.mean if arm.n else np.inf for arm in arms.values()])
    best = (means == means.max()) / (means == means.max()).sum()
    return _allocation(arms, best, epsilon / len(arms))


def _allocation(arms: Mapping[str, Moments], best: np.ndarray, floor: float) -> Allocation:
    shares = floor + (1 - floor * len(arms)) * best
    return Allocation(
        dict(zip(arms, shares.tolist(), strict=True)), dict(zip(arms, map(float, best), strict=True))
    )


def _check(arms: Mapping[str, Moments], floor: float) -> None:
    if not arms or not 0 <= floor * len(arms) <= 1:
        raise ValueError(f"{len(arms)} arms cannot each have a share of at least {floor}")
