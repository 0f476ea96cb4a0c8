"""The rollout functions against the real registry, journal and tables in a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.project import ModelDefinition
from toque.functions.rollout import (
    RolloutPolicy,
    end_rollout,
    explain_rollout,
    record_metric,
    rollout_status,
    start_rollout,
    tick_rollout,
)
from toque.functions.runtime import Context, use_context
from toque.functions.runtime.errors import InvalidArguments
from toque.registry import ModelPolicy, Registry

MODEL = "late"
POLICY = RolloutPolicy(shadow_min_labels=200)


@pytest.fixture
def registry(platform: RolloutPlatform, tmp_path: Path) -> Registry:
    """Version 1 is champion; 2 and 3 are registered; whoever goes live needs an approval and the gate."""
    reg = Registry(platform.store, actor="trainer", clock=platform.clock)
    reg.create_model(MODEL, policy=ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",)))
    for number in (1, 2, 3):
        path = tmp_path / f"weights-{number}.txt"
        path.write_text(str(number))
        reg.create_version(MODEL, path)
    for number in (1, 2):
        reg.record_gate(MODEL, number, "offline", passed=True)
        reg.as_actor("ada").approve(MODEL, number)
    reg.set_alias(MODEL, "champion", 1)
    return reg


def follow(platform: RolloutPlatform, registry: Registry) -> None:
    """Let the simulated model serve by the registry's traffic."""
    platform.registry.now = registry.traffic(MODEL)


def run(platform: RolloutPlatform, registry: Registry, days: int) -> list[Any]:
    ticks = []
    for _ in range(days):
        follow(platform, registry)
        platform.serve_a_day()
        ticks.append(tick_rollout(MODEL))
        if ticks[-1].stage in ("promoted", "rolled_back", "inconclusive"):
            break
    return ticks


def test_from_shadow_to_champion_in_the_registry(platform: RolloutPlatform, registry: Registry) -> None:
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ticker")):
        start_rollout(MODEL, 2, POLICY, reason="retrained")
        assert registry.traffic(MODEL).shadows == (2,)
        ticks = run(platform, registry, 40)
        assert [t.stage for t in ticks][-1] == "promoted"
        assert registry.traffic(MODEL).versions == (2,)
        assert tick_rollout(MODEL).rule == "settled"
        assert explain_rollout(MODEL, ticks[-1].entry).same
        assert rollout_status(MODEL).outcomes[-1].challenger == 2


def test_without_a_policy_it_is_the_one_that_the_project_declares(
    platform: RolloutPlatform, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = ModuleType("a_shop")
    definition = ModelDefinition(
        name=MODEL, service="late", entities="flights", label="late", numeric=("wind",), rollout=POLICY
    )
    shop.FEATURES, shop.MODELS = [], [definition]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_shop", shop)
    used = Context(platform.store, platform.store.url, clock=platform.clock, actor="ada")
    with use_context(replace(used, project="a_shop")):
        assert start_rollout(MODEL, 2).policy == POLICY
        end_rollout(MODEL, "inconclusive", reason="seen enough")
    with use_context(used):  # no project says anything of it
        assert start_rollout(MODEL, 2).policy == RolloutPolicy()


def test_a_version_nobody_approved_never_meets_a_user(platform: RolloutPlatform, registry: Registry) -> None:
    platform.quality[3] = 0.9
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ticker")):
        start_rollout(MODEL, 3, POLICY, reason="impatient")
        last = run(platform, registry, 20)[-1]
        assert (last.stage, last.rule) == ("rolled_back", "challenger_unusable")
        assert registry.traffic(MODEL).versions == (1,)


def test_a_rollback_by_hand_after_a_promotion_is_left_alone(
    platform: RolloutPlatform, registry: Registry
) -> None:
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ticker")):
        start_rollout(MODEL, 2, POLICY, reason="retrained")
        run(platform, registry, 40)
        registry.rollback(MODEL, "champion", reason="a customer called")
        tick = tick_rollout(MODEL)
        assert (tick.stage, tick.rule) == ("inconclusive", "settled")
        assert registry.traffic(MODEL).versions == (1,)


def test_a_version_rejected_in_canary_leaves_the_traffic(
    platform: RolloutPlatform, registry: Registry
) -> None:
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ticker")):
        start_rollout(MODEL, 2, POLICY, reason="retrained")
        while rollout_status(MODEL).current.stage == "shadow":
            run(platform, registry, 1)
        follow(platform, registry)
        platform.serve_a_day()
        registry.set_traffic(MODEL, {}, shadows=[], reason="take it out first")
        registry.as_actor("ada").reject(MODEL, 2, comment="unfair")
        assert tick_rollout(MODEL).stage == "rolled_back"


def test_a_metric_is_recorded_by_json_and_its_name_cannot_leave_its_folder(platform: RolloutPlatform) -> None:
    value = {"prediction_id": "7", "value": 2.5, "observed_at": "2013-05-01T00:00:00Z"}
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="shop")):
        assert record_metric.call_json({"name": "sales", "values": [value]}) == 1
        assert record_metric.call_json({"name": "sales", "values": []}) == 0
        for name in ("../labels", "a/b", ""):
            with pytest.raises(InvalidArguments):
                record_metric.call_json({"name": name, "values": [value]})
        with pytest.raises(InvalidArguments):
            record_metric.call_json({"name": "sales", "values": [{**value, "value": float("nan")}]})
