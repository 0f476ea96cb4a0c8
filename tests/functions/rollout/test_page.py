"""The page of a rollout, from its journal."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.reporting import rollout_report
from toque.functions.rollout import Guardrail, RolloutError, RolloutPolicy, list_rollouts, rollout_record
from toque.functions.rollout.record import read_rollout, thinned
from toque.functions.runtime import Context, use_context

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
    assert page.count('class="band series-0"') == 1  # the bounds of the estimate at every look
    assert "advance</text>" in page
    assert re.search(r"late</th><td>(lower|higher)</td>", page)  # the guardrail
    assert "units are on the canary" in page
    assert "try another" in first
    assert "second thoughts" in page
    assert "second thoughts" not in first
    entries = platform.rollouts().entries()
    state, decisions, changes = read_rollout(entries)
    assert (state.rollout, state.stage) == (second, "promoted")
    assert [one.decision.action for one in decisions if one.decision.action != "hold"] == [
        "advance",
        "promote",
    ]
    assert [change.event for change in changes] == ["started"]
    with pytest.raises(RolloutError, match="entry 999"):
        read_rollout(entries, 999)


def test_the_record_of_a_rollout_has_every_look_with_its_bounds_and_is_thinned_when_long(
    platform: RolloutPlatform,
) -> None:
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ada")):
        assert list_rollouts() == []
        platform.rollouts().start(2, RolloutPolicy(shadow_min_labels=200), reason="retrained")
        for _ in range(4):
            platform.serve_a_day()
            platform.rollouts().tick()
        record = rollout_record("late")
        (summary,) = list_rollouts()
    assert (summary.model, summary.challenger, summary.stage, summary.is_open) == ("late", 2, "canary", True)
    _, decisions, _ = read_rollout(platform.rollouts().entries())
    assert [look.entry for look in record.looks] == [one.entry for one in decisions]
    gains = [gain for look in record.looks for gain in look.gains]
    assert gains
    assert all(gain.estimate is not None for gain in gains)
    bounds = [(each.lower, each.estimate, each.upper) for each in gains if each.lower is not None]
    assert all(lower < (estimate or 0.0) < (upper or 0.0) for lower, estimate, upper in bounds)
    assert [change.event for change in record.changes] == ["started"]
    many = [replace(one, entry=number) for number, one in enumerate(decisions * 40)]
    kept = thinned(many, most=30)
    assert len(kept) <= 30 + sum(one.decision.action != "hold" for one in many)
    assert kept[-1] is many[-1]
