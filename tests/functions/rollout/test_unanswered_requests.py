"""Callers for whom a version has no finite answer: few units, many requests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.rollout.policy import RolloutPolicy

DAY = timedelta(days=1)
POLICY = RolloutPolicy(
    shadow_min_labels=200, canary_share=0.4, shadow_timeout=6 * DAY, canary_timeout=6 * DAY, season=4 * DAY
)


def break_caller(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch, *, every: int, versions: tuple[int, ...]
) -> None:
    """Make each n-th request one caller's, whom some versions answer with NaN."""
    row = platform._row

    def answer(name: str, version: int, *rest: Any, **named: Any) -> dict[str, Any]:
        own: dict[str, Any] = row(name, version, *rest, **named)
        if int(name.rpartition("-")[2]) % every:
            return own
        return own | {"unit": "caller"} | ({"outputs": [float("nan")]} if version in versions else {})

    monkeypatch.setattr(platform, "_row", answer)


def live(platform: RolloutPlatform, *, until: str = "") -> str:
    """Serve days, with a tick each, until the rollout ends or has come to a stage; returns the stage."""
    for _ in range(20):
        platform.serve_a_day()
        stage = platform.rollouts().tick().stage
        if stage in (until, "promoted", "rolled_back", "inconclusive"):
            return stage
    raise AssertionError("the rollout never ended")


@pytest.mark.parametrize("begins_in", ["shadow", "canary"])
@pytest.mark.parametrize("every", [2, 10, 40])
def test_a_version_without_an_answer_for_one_caller_is_not_promoted(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch, begins_in: str, every: int
) -> None:
    platform.rollouts().start(2, POLICY, reason="a try")
    if begins_in == "canary":
        assert live(platform, until="canary") == "canary"
    break_caller(platform, monkeypatch, every=every, versions=(2,))
    assert live(platform) in ("inconclusive", "rolled_back")
    texts = [
        finding["text"]
        for entry in platform.rollouts().entries()
        for finding in entry.body.get("decision", {"findings": []})["findings"]
    ]
    assert any("have no finite answer" in text for text in texts)


def test_a_caller_whom_no_version_answers_is_no_reason_against_a_better_one(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_caller(platform, monkeypatch, every=10, versions=(1, 2))
    platform.quality = {1: 0.1, 2: 1.0}
    platform.rollouts().start(2, POLICY.model_copy(update={"dependence": "unit"}), reason="a try")
    assert live(platform) == "promoted"
