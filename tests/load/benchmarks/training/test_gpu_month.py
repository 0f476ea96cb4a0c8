"""A few days of the simulated month: the rule keeps quotas, cards and budgets, fills the cluster, and starts urgent jobs at once."""

import pytest

from toque.functions.runtime.admission.request import Quota
from toque.load.benchmarks.training.gpu_month import (
    CARDS,
    LEAST_OF_BOUND,
    MOST_URGENT_S,
    Job,
    Month,
    bound_card_s,
    draw_jobs,
    draw_quotas,
)

DAY_S = 86_400.0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_busy_week_keeps_quotas_fills_the_cluster_and_starts_urgent_jobs_within_a_minute(seed: int) -> None:
    days = 7.0
    jobs = draw_jobs(days, 1.3, seed)
    quotas = draw_quotas(jobs)
    found = Month(jobs, quotas, seed).play(days * DAY_S)
    assert found.passed == 0
    assert 0.0 < found.budget <= 1.0
    assert found.useful_card_s >= LEAST_OF_BOUND * bound_card_s(jobs, quotas, days)
    assert len(found.urgent_s) > 5
    assert max(found.urgent_s) < MOST_URGENT_S
    assert found.preemptions > 0


def test_the_trace_asks_for_as_many_cards_as_it_is_told_to() -> None:
    jobs = draw_jobs(400.0, 1.0, seed=3)
    asked = sum(job.cards * job.work_s for job in jobs) / (400.0 * DAY_S * CARDS)
    assert asked == pytest.approx(1.0, abs=0.05)  # 20 000 jobs: about three standard errors
    assert sum(job.cards == 1 for job in jobs) / len(jobs) == pytest.approx(0.7, abs=0.02)


def test_the_bound_is_what_a_packing_by_hand_can_do() -> None:
    free = {"a": Quota(gpus=64)}
    wide = [Job(f"{number}", "a", 0.0, 64, DAY_S, urgent=False) for number in range(3)]
    assert bound_card_s(wide, free, 2.0) == CARDS * 2 * DAY_S  # two of them, one after the other
    late = [Job("l", "a", DAY_S, 8, 9 * DAY_S, urgent=False)]
    assert bound_card_s(late, free, 2.0) == 8 * DAY_S
    assert bound_card_s(wide, {"a": Quota(gpus=16)}, 2.0) == 16 * 2 * DAY_S
    assert bound_card_s(wide, {"a": Quota(gpus=64, gpu_hours=10.0)}, 2.0) == 36_000.0
