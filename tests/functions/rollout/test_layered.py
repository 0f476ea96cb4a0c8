"""Rollouts in a layer and beside a holdout, with the real registry; and those that a person ends or watches."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.prediction_log import outcomes
from toque.functions.rollout import (
    NoRollout,
    RolloutError,
    RolloutPolicy,
    Rollouts,
    end_rollout,
    explain_rollout,
    look_at_rollout,
    rollout_status,
    start_rollout,
    tick_rollout,
)
from toque.functions.runtime import Context, use_context
from toque.registry import Holdout, LayerShare, ModelPolicy, Refused, Registry, open_store

MODEL = "late"
POLICY = RolloutPolicy(
    shadow_min_labels=200,
    canary_share=0.3,
    layer=LayerShare(name="trips", share=0.5),
    holdout=Holdout(name="q2", share=0.1),
)


@pytest.fixture
def registry(platform: RolloutPlatform, tmp_path: Path) -> Registry:
    return with_models(platform, tmp_path)


def with_models(platform: RolloutPlatform, tmp_path: Path) -> Registry:
    """Models `late` and `price` with three versions each, the first one champion; `late` wants an approval."""
    reg = Registry(platform.store, actor="trainer", clock=platform.clock)
    weights = tmp_path / "weights.txt"
    weights.write_text("1")
    for model in (MODEL, "price"):
        reg.create_model(model, policy=ModelPolicy(guarded=frozenset({"champion"} if model == MODEL else ())))
        for _ in range(3):
            reg.create_version(model, weights)
        for number in (1, 2):
            reg.as_actor("ada").approve(model, number)
        reg.set_alias(model, "champion", 1)
    return reg


@pytest.fixture(autouse=True)
def _here(platform: RolloutPlatform) -> Any:
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="grace")):
        yield


def run(platform: RolloutPlatform, registry: Registry, days: int, **serve: int) -> list[Any]:
    ticks = []
    for _ in range(days):
        platform.registry.now = registry.traffic(MODEL)
        platform.serve_a_day(**serve)
        ticks.append(tick_rollout(MODEL))
        if ticks[-1].stage in ("promoted", "rolled_back", "inconclusive"):
            break
    return ticks


def until_canary(platform: RolloutPlatform, registry: Registry) -> None:
    while rollout_status(MODEL).open.stage == "shadow":
        run(platform, registry, 1)


def rows(platform: RolloutPlatform) -> list[dict[str, Any]]:
    since = rollout_status(MODEL).current.started_at
    return outcomes(platform.store, MODEL, since, platform.now, labelled_only=False).to_pylist()


def test_from_shadow_to_champion_in_a_layer_beside_a_holdout(
    platform: RolloutPlatform, registry: Registry
) -> None:
    start_rollout(MODEL, 2, POLICY, reason="retrained")
    assert registry.layer("trips")[MODEL].share == 0.5
    with pytest.raises(RolloutError, match=r"50.00% left and price wants 60.00%"):
        start_rollout("price", 2, RolloutPolicy(layer=LayerShare(name="trips", share=0.6)))
    assert rollout_status("price").current is None
    until_canary(platform, registry)
    ticks = run(platform, registry, 40)
    assert ticks[-1].stage == "promoted"
    decided = [one.entry for one in ticks if one.entry is not None]
    assert all(explain_rollout(MODEL, entry).same for entry in decided)
    share = next(
        one for one in explain_rollout(MODEL, decided[-1]).recorded.findings if one.rule == "mismatch"
    )
    assert not share.fired
    assert "at a share of 0.3," in share.text
    last = explain_rollout(MODEL, decided[-1]).evidence
    served = [row for row in rows(platform) if not row["shadow"]]
    arms = Counter(row["arm"] for row in served)
    assert set(arms) == {"champion", "canary", "holdout", "outside"}
    assert {row["version"] for row in served if row["arm"] in ("holdout", "outside")} == {1}
    assert last.canary.challenger == arms["canary"]
    assert last.units.champion + last.units.challenger < arms["canary"] + arms["champion"]
    # Shadows see all but the held-out units, and so does the loss: a canary's own answers have no shadow.
    assert last.loss.requests <= arms["champion"] + arms["outside"]
    assert registry.layer("trips") == {}
    assert registry.traffic(MODEL).holdouts == (Holdout(name="q2", share=0.1),)
    start_rollout("price", 2, RolloutPolicy(layer=LayerShare(name="trips", share=0.6)))


def test_no_held_out_unit_meets_a_second_rollout_either(
    platform: RolloutPlatform, registry: Registry
) -> None:
    platform.quality[3] = 0.9
    registry.as_actor("ada").approve(MODEL, 3)
    for version in (2, 3):
        start_rollout(MODEL, version, POLICY, reason="retrained")
        until_canary(platform, registry)
        run(platform, registry, 2)
        held = [row for row in rows(platform) if POLICY.holdout.holds(row["unit"])]
        assert {(row["arm"], row["version"], row["shadow"]) for row in held} == {("holdout", 1, False)}
        end_rollout(MODEL, "inconclusive", "seen enough")
        tick_rollout(MODEL)


class Killed(BaseException):
    """What no handler catches."""


class Mortal:
    """A store whose caller dies at its n-th write, before or after it."""

    def __init__(self, store: Any, writes: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, writes, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("create", "put"):
            return found

        def dying(*args: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Killed
            done = found(*args)
            if self._left < 0:
                raise Killed
            return done

        return dying


def decided(platform: RolloutPlatform, tick: Any) -> list[dict[str, Any]]:
    """Every entry of a rollout whose ticks are made so."""
    registry = Registry(platform.store, actor="trainer", clock=platform.clock)
    start_rollout(MODEL, 2, POLICY, reason="retrained")
    for _ in range(40):
        platform.registry.now = registry.traffic(MODEL)
        platform.serve_a_day()
        tick()
        if not rollout_status(MODEL).current.is_open:
            break
    tick()
    assert registry.traffic(MODEL).champion.version == 2
    assert registry.layer("trips") == {}
    return [entry.body for entry in platform.rollouts().entries()]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_ticks_that_are_killed_at_every_write_decide_the_same(
    platform: RolloutPlatform,
    registry: Registry,
    after: bool,  # noqa: FBT001 - a parameter
    tmp_path: Path,
) -> None:
    died = 0

    def mortally() -> None:
        nonlocal died
        for writes in range(20):
            mortal = Mortal(platform.store, writes, after=after)
            used = Context(mortal, platform.store.url, clock=platform.clock, actor="grace")  # type: ignore[arg-type]
            try:
                with use_context(used):
                    tick_rollout(MODEL)
            except Killed:
                died += 1
            else:
                return
        pytest.fail("a tick writes without end")

    killed = decided(platform, mortally)
    assert died >= len(killed) - 1  # beside the start, each entry had its killer
    calm = type(platform)(open_store(f"file://{tmp_path}/calm"))
    with_models(calm, tmp_path)
    with use_context(Context(calm.store, calm.store.url, clock=calm.clock, actor="grace")):
        untouched = decided(calm, lambda: tick_rollout(MODEL))
    assert [without_entry(body) for body in killed] == [without_entry(body) for body in untouched]


def without_entry(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "traffic_entry"}


@pytest.mark.parametrize("lost", [{}, {2: 0.6}], ids=["as declared", "off"])
def test_the_split_is_tested_within_the_layers_part(
    platform: RolloutPlatform, registry: Registry, lost: dict[int, float]
) -> None:
    platform.quality = {1: 0.5, 2: 0.55}
    policy = POLICY.model_copy(
        update={"shadow_min_labels": 30, "burn_in": 30, "min_effect": -1.0, "canary_min": timedelta(days=9)}
    )
    start_rollout(MODEL, 2, policy, reason="equal")
    until_canary(platform, registry)
    platform.lost = lost
    ticks = run(platform, registry, 5, requests=400)
    assert (ticks[-1].rule == "mismatch") == bool(lost)
    seen = rollout_status(MODEL).current
    assert (seen.stage == "inconclusive") == bool(lost)


def test_a_layer_without_room_refuses_the_start_and_leaves_nothing(
    platform: RolloutPlatform, registry: Registry
) -> None:
    registry.set_traffic("price", {"a": (2, 0.5)}, layer=LayerShare(name="trips", share=0.8))
    before = registry.traffic(MODEL)
    wanted = POLICY.model_copy(update={"holdout": None})
    with pytest.raises(RolloutError, match=r"'trips' has 20.00% left"):
        start_rollout(MODEL, 2, wanted)
    assert registry.traffic(MODEL) == before
    assert rollout_status(MODEL).current is None
    start_rollout(MODEL, 2)
    end_rollout(MODEL, "roll_back", "another try")
    tick_rollout(MODEL)
    fits = {"layer": LayerShare(name="trips", share=0.2)}
    with pytest.raises(RolloutError, match=r"wrong_promotions_a_year=0.01 is spent"):
        start_rollout(MODEL, 2, wanted.model_copy(update={**fits, "wrong_promotions_a_year": 0.01}))
    assert set(registry.layer("trips")) == {"price"}
    start_rollout(MODEL, 2, wanted.model_copy(update=fits))
    assert registry.traffic(MODEL).layer.share == 0.2


def test_a_person_promotes_only_what_the_models_policy_allows(
    platform: RolloutPlatform, registry: Registry
) -> None:
    start_rollout(MODEL, 3, POLICY, reason="impatient")
    with pytest.raises(Refused, match=r"late@3 may not become the champion yet: 0 of 1 approvals"):
        end_rollout(MODEL, "promote", "I like it")
    assert rollout_status(MODEL).open is not None
    registry.as_actor("ada").approve(MODEL, 3)
    assert end_rollout(MODEL, "promote", "I like it").stage == "promoted"
    assert registry.traffic(MODEL).champion.version == 3
    entry = platform.rollouts().entries()[-1]
    told = explain_rollout(MODEL, entry.number)
    assert (entry.actor, told.recorded.rule, told.recorded.action) == ("grace", "by_hand", "promote")
    assert "promote by hand: I like it. grace decided" in told.text
    assert tick_rollout(MODEL).rule == "settled"


def test_a_person_aborts_with_a_reason_and_the_part_is_free(
    platform: RolloutPlatform, registry: Registry
) -> None:
    start_rollout(MODEL, 2, POLICY, reason="retrained")
    until_canary(platform, registry)
    assert end_rollout(MODEL, "roll_back", "a customer called").stage == "rolled_back"
    assert registry.traffic(MODEL).versions == (1,)
    assert registry.layer("trips") == {}
    told = explain_rollout(MODEL, platform.rollouts().entries()[-1].number)
    assert "roll_back by hand: a customer called. grace decided" in told.text


def test_a_champion_changed_by_hand_is_not_promoted_over(
    platform: RolloutPlatform, registry: Registry
) -> None:
    start_rollout(MODEL, 2, POLICY, reason="retrained")
    registry.as_actor("ada").approve(MODEL, 3)
    registry.set_alias(MODEL, "champion", 3)
    with pytest.raises(RolloutError, match="the champion is 3, this rollout compares with 1"):
        end_rollout(MODEL, "promote", "I like it")


def test_a_tick_in_between_does_not_swallow_what_a_person_says(
    platform: RolloutPlatform, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_rollout(MODEL, 2, POLICY, reason="retrained")
    platform.registry.now = registry.traffic(MODEL)
    platform.serve_a_day()
    platform.now += timedelta(days=1)
    sum_cohorts = Rollouts._observe

    def slow(self: Rollouts, *args: Any) -> Any:
        found = sum_cohorts(self, *args)
        monkeypatch.setattr(Rollouts, "_observe", sum_cohorts)
        assert tick_rollout(MODEL).entry is not None
        return found

    monkeypatch.setattr(Rollouts, "_observe", slow)
    assert end_rollout(MODEL, "roll_back", "a customer called").stage == "rolled_back"
    assert registry.traffic(MODEL).versions == (1,)


def test_a_look_tells_what_a_tick_would_do_and_writes_no_entry(
    platform: RolloutPlatform, registry: Registry
) -> None:
    with pytest.raises(NoRollout):
        look_at_rollout(MODEL)
    start_rollout(MODEL, 2, POLICY, reason="retrained")
    early = look_at_rollout(MODEL)
    assert [(arm.arm, arm.version, arm.share) for arm in early.arms] == [
        ("champion", 1, 1.0),
        ("shadow", 2, None),
    ]
    assert early.effects[0].estimate is None
    until_canary(platform, registry)
    platform.registry.now = registry.traffic(MODEL)
    platform.serve_a_day()
    entries = len(platform.rollouts().entries())
    seen = look_at_rollout(MODEL)
    assert len(platform.rollouts().entries()) == entries
    assert (seen.stage, seen.reach) == ("canary", pytest.approx(0.45))
    champion, canary = seen.arms
    assert (champion.share, canary.share) == (0.7, 0.3)
    assert canary.answers > 0
    effect = seen.effects[0]
    assert effect.estimate is not None
    assert effect.lower is None  # nothing bounds it below before a whole season; JSON has no infinity
    assert effect.upper is not None
    assert effect.estimate < effect.upper
    ticked = tick_rollout(MODEL)
    assert (ticked.action, ticked.rule) == (seen.action, seen.rule)
    end_rollout(MODEL, "roll_back", "seen enough")
    over = look_at_rollout(MODEL)
    assert (over.is_open, over.stage, over.rule) == (False, "rolled_back", "by_hand")
