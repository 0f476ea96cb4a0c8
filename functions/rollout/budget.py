"""Yearly budget of wrong promotions: each rollout's alpha is drawn from it, and the journal remembers what was drawn."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import YEAR, History

MAX_SHARE_OF_REST = (
    0.25  # of the rest of the budget for one rollout: it never runs dry, rollouts only get slower
)


class Budget(BaseModel):
    """Budget of wrong promotions and what rollouts of the past 365 days drew from it.

    rollouts: how many started. spent: sum of their alphas, a bound on the expected number of promotions of challengers that
    were not better, however each start depended on how the ones before ended. left: of the policy's budget; None: the policy has no budget.
    alpha: what a rollout that starts now runs at.
    """

    model_config = ConfigDict(frozen=True)

    rollouts: int
    spent: float
    left: float | None
    alpha: float


def budget(history: History, policy: RolloutPolicy, now: datetime) -> Budget:
    """Compute the budget as of `now`. A rollout gets the policy's alpha, but no more than a quarter of what is left.

    Source: linearity of expectation over rollouts, each wrong with a chance of at most its alpha given what came before.
    """
    recent = [one.alpha for one in history.spent if one.at > now - YEAR]
    spent = sum(recent)
    if policy.wrong_promotions_a_year is None:
        return Budget(rollouts=len(recent), spent=spent, left=None, alpha=policy.alpha)
    left = max(policy.wrong_promotions_a_year - spent, 0.0)
    return Budget(
        rollouts=len(recent), spent=spent, left=left, alpha=min(policy.alpha, MAX_SHARE_OF_REST * left)
    )


def within_budget(policy: RolloutPolicy, history: History, now: datetime) -> RolloutPolicy:
    """Return the policy with the alpha that the budget affords.

    Raises: ValueError if nothing is left, which takes a budget that was lowered.
    """
    found = budget(history, policy, now)
    if found.alpha <= 0.0:
        raise ValueError(
            f"wrong_promotions_a_year={policy.wrong_promotions_a_year} is spent: {found.rollouts} rollouts of the past year "
            f"were given {found.spent:.4g}; raise it, or wait until the oldest of them are a year old"
        )
    return policy if found.alpha == policy.alpha else policy.model_copy(update={"alpha": found.alpha})
