"""The page of a rollout, from its journal."""

from __future__ import annotations

import pytest

from functions.reporting import rollout_report
from functions.reporting.rollout_page import read_rollout, render_rollout
from functions.rollout import Guardrail, RolloutError, RolloutPolicy
from functions.runtime import Context, use_context
from tests.functions.rollout.conftest import RolloutPlatform

POLICY = RolloutPolicy(
    shadow_min_labels=200, canary_share=0.4, guardrails=(Guardrail(name="late", margin=0.5),)
)


def test_a_whole_rollout_is_on_its_page(platform: RolloutPlatform) -> None:
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ada")):
        with pytest.raises(RolloutError, match="no rollout began at any entry"):
            rollout_report("late")
        platform.rollouts().start(3, POLICY, reason="<first>")
        early = platform.store.get(rollout_report("late")).decode()
        assert "Nothing was judged yet" in early
        assert "&lt;first&gt;" in early
        platform.rollouts().end("inconclusive", reason="try another")
        platform.rollouts().tick()
        second = platform.rollouts().start(2, POLICY, reason="second thoughts").rollout
        for _ in range(25):
            platform.serve_a_day()
            if platform.rollouts().tick().stage == "promoted":
                break
        page = platform.store.get(rollout_report("late", second)).decode()
        first = platform.store.get(rollout_report("late", 0)).decode()
    assert "version 2 against 1" in page
    assert "It stands at promoted" in page
    assert "upper bound" in page
    assert "units are on the canary" in page
    assert "try another" in first
    assert "second thoughts" in page
    assert "second thoughts" not in first
    entries = platform.rollouts().entries()
    state, decisions, by_hand = read_rollout(entries)
    assert (state.rollout, state.stage) == (second, "promoted")
    assert [one.decision.action for one in decisions if one.decision.action != "hold"] == [
        "advance",
        "promote",
    ]
    assert [row[2] for row in by_hand] == ["started"]
    with pytest.raises(RolloutError, match="entry 999"):
        render_rollout("late", entries, 999)
