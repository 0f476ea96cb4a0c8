"""What the model's policy decides: limits of gates, whose approvals count, overrides, frozen tags, code, automatic approval."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from toque.registry import (
    AutomaticApproval,
    GateData,
    GateDemand,
    InvalidInput,
    ModelPolicy,
    Refused,
    Registry,
)

STRICT = GateDemand(name="offline", limits={"min_rows": 500}, data=GateData(table="training/m/*-holdout"))
GUARDED = ModelPolicy(guarded=frozenset({"champion"}), gates=(STRICT,))


@pytest.fixture
def model(reg: Registry, model_files: Path) -> str:
    """A model with two versions by ada."""
    reg.create_model("m", policy=GUARDED)
    for _ in range(2):
        reg.create_version("m", model_files, tags={"feature_service": "late", "team": "ops"})
    return "m"


def change(reg: Registry, **changes: Any) -> ModelPolicy:
    return reg.set_policy("m", reg.get_model("m").policy.model_copy(update=changes)).policy


def test_a_gate_with_limits_is_not_recorded_by_hand_or_by_other_limits(reg: Registry, model: str):
    with pytest.raises(
        Refused, match=r"'offline' was judged by no limits at all, by hand.*run evaluate_gate"
    ):
        reg.record_gate(model, 1, "offline", passed=True)
    with pytest.raises(Refused, match="judged by other limits or data"):
        reg.record_gate(model, 1, "offline", passed=True, demand=GateDemand(name="offline").digest)
    reg.record_gate(model, 1, "reading", passed=True)
    outcome = reg.record_gate(model, 1, "offline", passed=True, demand=STRICT.digest).gates
    assert (outcome["offline"].by_hand, outcome["reading"].by_hand) == (False, True)
    assert outcome["offline"].policy == GUARDED.digest
    assert "gate reading: passed (recorded by hand)" in reg.card(model, 1)


def cleared(reg: Registry, version: int) -> None:
    """Pass the gate by the policy's limits, and have the version approved."""
    demand = reg.get_model("m").policy.demand("offline")
    assert demand is not None
    reg.record_gate("m", version, "offline", passed=True, demand=demand.digest)
    reg.as_actor("bob").approve("m", version, comment="fine")


def test_changed_limits_ask_for_a_new_result_and_a_new_approval(reg: Registry, model: str):
    for version in (1, 2):
        cleared(reg, version)
    assert reg.get_version(model, 1).approvals[0].policy == GUARDED.digest
    reg.promote(model, 1)
    change(reg, gates=(GateDemand(name="offline", limits={"min_rows": 5_000}),))
    with pytest.raises(Refused) as refused:
        reg.promote(model, 2)
    assert "'offline' has not run with the limits and data of the policy" in str(refused.value)
    assert "0 of 1 approvals (author: ada); ['bob'] approved under an earlier policy" in str(refused.value)
    with pytest.raises(Refused, match="has not run with the limits"):
        reg.set_traffic(model, {"canary": (2, 0.1)})
    cleared(reg, 2)
    reg.promote(model, 2)
    assert reg.rollback(model).version == 1  # what went live by the rules of its time may come back


def test_an_arm_that_was_allowed_is_carried_along_but_does_not_grow(reg: Registry, model: str):
    for version in (1, 2):
        cleared(reg, version)
    reg.promote(model, 1)
    reg.set_traffic(model, {"canary": (2, 0.1)})
    change(reg, approvals=2)
    reg.set_traffic(model, {"canary": (2, 0.05)}, shadows=[1])
    with pytest.raises(Refused, match="0 of 2 approvals"):
        reg.set_traffic(model, {"canary": (2, 0.06)})


def test_a_change_back_lets_earlier_approvals_count_again(reg: Registry, model: str):
    cleared(reg, 1)
    change(reg, overriders=frozenset({"eve"}))
    assert len(reg.unmet(model, 1)) == 1
    change(reg, overriders=frozenset())
    assert reg.unmet(model, 1) == ()


def test_approvals_and_results_of_an_older_store_count_until_the_policy_changes(reg: Registry, model: str):
    reg.set_policy(model, ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",)))
    reg.record_gate(model, 1, "offline", passed=True)
    reg.as_actor("bob").approve(model, 1)
    review = reg.history(model)[-1].body
    assert set(review) == {"kind", "version", "approved", "comment"}  # as releases without digests wrote it
    cold = Registry(reg.store, actor="x")
    assert cold.unmet(model, 1) == ()
    change(reg, approvers=frozenset({"bob"}))
    assert len(cold.unmet(model, 1)) == 1


def test_only_overriders_override(reg: Registry, model: str):
    change(reg, overriders=frozenset({"eve"}))
    for attempt in (
        lambda: reg.promote(model, 1, override="site is down"),
        lambda: reg.set_alias(model, "champion", 1, override="site is down"),
    ):
        with pytest.raises(Refused, match=r"'ada' may not override its policy; ask one of \['eve'\]"):
            attempt()
    (mark,) = reg.as_actor("eve").promote(model, 1, override="site is down").overrides
    assert (mark.actor, mark.reason) == ("eve", "site is down")
    with pytest.raises(Refused, match="'ada' may not override"):
        reg.set_traffic(model, {"canary": (2, 0.1)}, override="half of them")


@pytest.mark.parametrize("state", ["approved", "live", "was live"])
def test_tags_that_change_serving_are_frozen_once_approved_or_live(reg: Registry, model: str, state: str):
    reg.set_version_tags(model, 1, {"feature_service": "later"})
    if state == "approved":
        reg.as_actor("bob").approve(model, 1)
    else:
        reg.set_policy(model, ModelPolicy())
        reg.promote(model, 1)
        if state == "was live":
            reg.promote(model, 2)
    entries = len(reg.history(model))
    for tags in (
        {"feature_service": "other"},
        {"feature_service": None},
        {"team": "x", "max_batch_rows": "9"},
    ):
        with pytest.raises(Refused, match=f"{state}.*frozen; register a new version"):
            reg.set_version_tags(model, 1, tags)
    assert len(reg.history(model)) == entries
    reg.set_version_tags(model, 1, {"team": "growth", "feature_service": "later"})
    assert reg.get_version(model, 1).tags == {"feature_service": "later", "team": "growth"}


@pytest.fixture
def code(reg: Registry, tmp_path: Path) -> str:
    """A version by ada with two pickles, which ada named when registering it."""
    folder = tmp_path / "code"
    folder.mkdir()
    names = ["model.pkl", "other.pkl"]
    for name in names:
        (folder / name).write_bytes(b"x")
    reg.create_model("m")
    reg.create_version("m", folder, allow_code=names)
    return "m"


def test_code_is_accepted_by_the_policy_or_by_another_person(reg: Registry, code: str):
    assert reg.accepted_code(code, 1) == ()
    with pytest.raises(Refused, match="'ada' registered it and may not approve"):
        reg.approve(code, 1, accept_code=["model.pkl"])
    with pytest.raises(
        InvalidInput, match=r"accept_code=\['weights.bin'\].*it has \['model.pkl', 'other.pkl'\]"
    ):
        reg.as_actor("bob").approve(code, 1, accept_code=["weights.bin"])
    reg.approve(code, 1)  # unguarded, so the author may; that accepts no code
    assert reg.accepted_code(code, 1) == ()
    reg.as_actor("bob").approve(code, 1, accept_code=["model.pkl"])
    assert reg.accepted_code(code, 1) == ("model.pkl",)
    assert "code accepted: model.pkl" in reg.card(code, 1)
    reg.as_actor("bob").approve(code, 1)
    assert reg.accepted_code(code, 1) == ()
    change(reg, allow_code=("other.*",))
    assert reg.accepted_code(code, 1) == ("other.pkl",)


def test_automatic_approval_must_be_switched_on_and_shows(reg: Registry, model: str):
    retraining = reg.as_actor("retraining-policy")
    with pytest.raises(
        Refused, match="no automatic_approval; a person must approve, or an admin switch it on"
    ):
        retraining.approve(model, 1, automatic=True)
    change(reg, automatic_approval=AutomaticApproval(reason="renewals of a proven recipe"))
    (approval,) = retraining.approve(model, 1, automatic=True).approvals
    assert approval.automatic
    assert "approved AUTOMATICALLY by retraining-policy" in reg.card(model, 1)
    reg.record_gate(model, 1, "offline", passed=True, demand=STRICT.digest)
    assert reg.unmet(model, 1) == ()
    change(reg, automatic_approval=None)
    assert len(reg.unmet(model, 1)) == 1


def test_automatic_approvals_end_at_the_ceiling_of_thirty_days(reg: Registry, model: str):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    change(reg, automatic_approval=AutomaticApproval(reason="renewals", max_per_30_days=1))
    Registry(reg.store, actor="robot", clock=lambda: now).approve(model, 1, automatic=True)
    soon = Registry(reg.store, actor="robot", clock=lambda: now + timedelta(days=29))
    with pytest.raises(Refused, match="1 automatic approvals in 30 days, its policy allows 1"):
        soon.approve(model, 2, automatic=True)
    Registry(reg.store, actor="robot", clock=lambda: now + timedelta(days=31)).approve(
        model, 2, automatic=True
    )


def test_a_policy_names_each_gate_once_and_has_a_digest_that_ignores_order():
    with pytest.raises(ValidationError, match=r"gates \['offline'\] are demanded twice"):
        ModelPolicy(gates=("offline", STRICT))
    one = ModelPolicy(approvers=frozenset({"bob", "cleo", "dan"}), gates=(STRICT,))
    assert one.digest == ModelPolicy.model_validate_json(one.model_dump_json()).digest
    assert one.recorded() == {
        "approvers": ["bob", "cleo", "dan"],
        "gates": [STRICT.model_dump(mode="json", exclude_defaults=True)],
    }
    assert ModelPolicy(approvals=1).digest == ModelPolicy().digest != one.digest


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(?!a)", "is no regular expression of RE2"), ("a*", "matches every text"), ("(a", "is no regular")],
)
def test_a_pattern_of_declining_is_checked_when_it_is_declared(pattern: str, reason: str):
    with pytest.raises(ValidationError, match=f"declining: .*{reason}"):
        ModelPolicy(declining=("^je ne peux pas", pattern))


def test_a_policy_without_patterns_is_that_of_an_earlier_release():
    assert "declining" not in ModelPolicy(approvals=2).recorded()
    assert ModelPolicy(declining=("^no",)).recorded() == {"declining": ["^no"]}
