"""Guardrails whose values come for one arm's answers more often than for the other's."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.rollout.policy import Guardrail, RolloutPolicy

DAY = timedelta(days=1)


def live(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch, lost: dict[str, float], **settings: Any
) -> str:
    """Roll version 2 out on labels of which a share is lost, by arm, those of what did not sell; returns how it ends."""
    label, rng = platform._label, np.random.default_rng(7)

    def labels(ids: list[str], truth: np.ndarray, at: list[datetime]) -> None:
        arms = [platform.registry.now.assign(name).name for name in ids]
        chosen = [
            place for place, arm in enumerate(arms) if truth[place] or rng.random() >= lost.get(arm, 0.0)
        ]
        label([ids[place] for place in chosen], truth[chosen], [at[place] for place in chosen])

    monkeypatch.setattr(platform, "_label", labels)
    policy = RolloutPolicy(
        shadow_min_labels=200,
        canary_share=0.4,
        canary_timeout=8 * DAY,
        season=4 * DAY,
        dependence="unit",
        guardrails=(Guardrail(name="sales", margin=0.9),),
        **settings,
    )
    platform.rollouts().start(2, policy, reason="a try")
    for _ in range(20):
        platform.serve_a_day()
        stage = platform.rollouts().tick().stage
        if stage in ("promoted", "rolled_back", "inconclusive"):
            return stage
    raise AssertionError("the rollout never ended")


def texts(platform: RolloutPlatform) -> str:
    decisions = [
        entry.body["decision"] for entry in platform.rollouts().entries() if "decision" in entry.body
    ]
    return "\n".join(finding["text"] for one in decisions for finding in one["findings"])


@pytest.mark.parametrize("struck", ["champion", "canary"])
@pytest.mark.parametrize("lost", [0.5, 1.0])
def test_values_that_are_lost_in_one_arm_promote_nothing(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch, struck: str, lost: float
) -> None:
    assert live(platform, monkeypatch, {struck: lost}, min_label_share=0.1) == "inconclusive"
    assert "find out which are missing before the values of the two are compared" in texts(platform)


def test_an_arm_with_few_values_is_not_hidden_by_the_other_s(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert live(platform, monkeypatch, {"canary": 1.0}, min_label_share=0.7) == "inconclusive"
    assert "of the canary's answers have a value, 100.0% of the champion's; 70% are needed" in texts(platform)


def test_values_that_are_lost_alike_are_compared(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {"champion": 0.3, "canary": 0.3}
    assert live(platform, monkeypatch, lost) == "promoted"
