"""Error budgets of all models that declare objectives: what each may still spend, and how fast it is spent now."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.jobs import HasRollout
from toque.functions.rollout.judge.slo import burning, slo_sums
from toque.functions.rollout.policy import Slo
from toque.functions.runtime.context import context
from toque.functions.runtime.definitions import declarations
from toque.functions.runtime.function import function
from toque.registry import ObjectStore


class ErrorBudget(BaseModel):
    """Error budget of one objective of a model, over its window.

    left: share of the budget that is not spent, below 0 if more was; None without answers. burn_rate: how many times as fast as it
    lasts with it is spent now, in the worse of two long windows. needs_somebody: whether it is spent, or will be within days.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    objective: str
    target: float
    slow_ms: float | None
    window_days: float
    answers: int
    bad: int
    left: float | None
    burn_rate: float
    needs_somebody: bool
    text: str


@function(http=True, role="viewer", timeout_s=120, in_thread=True)
def error_budgets() -> list[ErrorBudget]:
    """List the error budgets of all models that declare objectives, those that need somebody first, then the emptiest.

    Raises: ProjectError if the project is set and cannot be imported.
    """
    used = context()
    declared: Mapping[str, HasRollout] = declarations(used.project).models if used.project else {}
    now = used.clock()
    budgets = [
        budget
        for name, definition in declared.items()
        for budget in _budgets(used.store, name, definition.rollout.slos, now)
    ]
    return sorted(
        budgets, key=lambda budget: (not budget.needs_somebody, 1.0 if budget.left is None else budget.left)
    )


def _budgets(store: ObjectStore, model: str, slos: Collection[Slo], now: datetime) -> Iterator[ErrorBudget]:
    sums = slo_sums(slos, store, model, now)
    for slo in slos:
        answers, bad = sums[slo.name].answers, sums[slo.name].bad
        finding = burning(slo, sums[slo.name])
        allowed = (1 - slo.target) * answers
        left = None if not answers else 1.0 - bad / allowed if allowed else float(bad == 0)
        spent = left is not None and left < 0
        text = f"{slo.name} is spent: {bad} of {answers} answers were bad, {allowed:.1f} are allowed"
        yield ErrorBudget(
            model=model,
            objective=slo.name,
            target=slo.target,
            slow_ms=slo.slow_ms,
            window_days=slo.window / timedelta(days=1),
            answers=answers,
            bad=bad,
            left=left,
            burn_rate=finding.statistic or 0.0,
            needs_somebody=spent or finding.fired,
            text=text if spent else finding.text,
        )
