"""Policy of a rollout: what its levels add up to, as the page says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toque.functions.rollout.policy import Guardrail, RolloutPolicy

PAGE = Path(__file__).parents[3] / "docs" / "rollout.md"


@pytest.mark.parametrize(
    ("policy", "level"),
    [
        (RolloutPolicy(), 0.13),
        (RolloutPolicy(slow_ms=100), 0.18),
        (RolloutPolicy(slow_ms=100, guardrails=(Guardrail(name="sales", margin=0.1),)), 0.23),
        (RolloutPolicy(alpha=0.01, guard_alpha=0.02, live_alpha=0.005, mismatch_alpha=0.001), 0.036),
    ],
)
def test_the_chance_to_stop_an_equal_challenger_is_the_sum_of_the_levels(
    policy: RolloutPolicy, level: float
) -> None:
    assert policy.stops_equal == pytest.approx(level)


def test_the_page_states_the_sum() -> None:
    text = PAGE.read_text()
    assert f"make {RolloutPolicy().stops_equal:.2f} by default".replace("0.", ".") in text
    most = RolloutPolicy(slow_ms=1, guardrails=(Guardrail(name="any", margin=0),))
    assert f"{most.stops_equal:.2f} in all".replace("0.", ".") in text
