from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from toque.registry import InvalidInput, ModelPolicy, NotFound, Refused, Registry, Stale, open_store

GUARDED = ModelPolicy(guarded=frozenset({"champion"}), approvals=1, gates=("offline",))


@pytest.fixture
def model(reg: Registry, model_files: Path) -> str:
    """A model with three versions by ada."""
    reg.create_model("m")
    for _ in range(3):
        reg.create_version("m", model_files)
    return "m"


def allow(reg: Registry, model: str, version: int) -> None:
    reg.as_actor("bob").approve(model, version, comment="looks right")
    reg.record_gate(model, version, "offline", True, {"auc": 0.7})


def test_an_unguarded_alias_moves_freely(reg: Registry, model: str):
    assert reg.set_alias(model, "champion", 2).version == 2
    assert reg.get_version(model, "champion").version == 2
    reg.set_alias(model, "champion", 1, expected=2)
    entries = len(reg.history(model))
    reg.set_alias(model, "champion", 1)
    assert len(reg.history(model)) == entries


def test_a_stale_expectation_names_the_current_version(reg: Registry, model: str):
    reg.set_alias(model, "champion", 1, expected=None)
    with pytest.raises(Stale, match="expected None but it is 1 now") as caught:
        reg.set_alias(model, "champion", 2, expected=None)
    assert (caught.value.expected, caught.value.actual) == (None, 1)
    with pytest.raises(Stale):
        reg.promote(model, 2, expected=3)


def test_a_guarded_alias_needs_approvals_and_gates(reg: Registry, model: str):
    reg.set_policy(model, GUARDED)
    with pytest.raises(Refused, match=r"gate 'offline' has not run, 0 of 1 approvals"):
        reg.promote(model, 1)
    reg.record_gate(model, 1, "offline", False)
    reg.as_actor("bob").approve(model, 1)
    with pytest.raises(Refused, match="gate 'offline' has failed"):
        reg.set_alias(model, "champion", 1)
    reg.record_gate(model, 1, "offline", True)
    assert reg.promote(model, 1).overrides == ()
    reg.set_alias(model, "candidate", 2)  # not guarded
    with pytest.raises(Refused):
        reg.set_traffic(model, {"canary": (2, 0.01)})
    reg.set_traffic(model, {}, shadows=[2])  # a shadow answers nobody
    allow(reg, model, 2)
    reg.set_traffic(model, {"canary": (2, 0.01)})


def test_the_author_does_not_approve_and_only_approvers_count(reg: Registry, model: str):
    reg.set_policy(
        model, ModelPolicy(guarded=frozenset({"champion"}), approvals=2, approvers=frozenset({"bob", "cleo"}))
    )
    with pytest.raises(Refused, match="registered it and may not approve"):
        reg.approve(model, 1)
    with pytest.raises(Refused, match="not among its approvers"):
        reg.as_actor("dan").approve(model, 1)
    reg.as_actor("bob").approve(model, 1)
    reg.as_actor("bob").approve(model, 1, comment="twice is once")
    with pytest.raises(Refused, match=r"1 of 2 approvals from \['bob', 'cleo'\]"):
        reg.promote(model, 1)
    reg.as_actor("cleo").approve(model, 1)
    reg.promote(model, 1)
    reg.set_policy(model, GUARDED.model_copy(update={"author_may_approve": True, "gates": ()}))
    reg.approve(model, 2)
    reg.promote(model, 2)


def test_an_override_needs_a_reason_and_is_marked_for_ever(reg: Registry, model: str):
    reg.set_policy(model, GUARDED)
    with pytest.raises(Refused):
        reg.promote(model, 1, override="  ")
    version = reg.promote(model, 1, override="site is down")
    (mark,) = version.overrides
    assert (mark.actor, mark.reason) == ("ada", "site is down")
    assert any("offline" in rule for rule in mark.broken)
    allow(reg, model, 1)
    assert reg.get_version(model, 1).overrides == (mark,)
    marked = reg.set_traffic(model, {"canary": (2, 0.5)}, override="half at least")
    assert marked.arms[1].version == 2
    assert reg.get_version(model, 2).overrides[0].reason == "half at least"


def test_a_rejected_version_cannot_be_used_until_its_reviewer_approves(reg: Registry, model: str):
    bob = reg.as_actor("bob")
    assert bob.reject(model, 2, comment="leaks").status == "REJECTED"
    reg.set_alias(model, "champion", 1)
    for attempt in (
        lambda: reg.set_alias(model, "champion", 2),
        lambda: reg.promote(model, 2, override="please"),
        lambda: reg.set_traffic(model, {"canary": (2, 0.1)}),
        lambda: reg.set_traffic(model, {}, shadows=[2]),
    ):
        with pytest.raises(Refused, match="REJECTED"):
            attempt()
    with pytest.raises(Refused, match="live"):
        bob.reject(model, 1)
    bob.approve(model, 2, comment="fixed")
    reg.promote(model, 2)


def test_promotion_ends_the_experiment_in_one_entry(reg: Registry, model: str):
    reg.set_alias(model, "champion", 1)
    reg.set_traffic(model, {"canary": (2, 0.1)}, shadows=[3])
    entries = len(reg.history(model))
    reg.promote(model, 2, reason="won", expected=1)
    assert len(reg.history(model)) == entries + 1
    traffic = reg.traffic(model)
    assert [(arm.name, arm.version, arm.share) for arm in traffic.arms] == [("champion", 2, 1.0)]
    assert traffic.shadows == ()
    assert traffic.entry == entries


def test_rollback_skips_versions_that_may_not_be_used(reg: Registry, model: str):
    for version in (1, 2, 3):
        reg.promote(model, version)
    reg.as_actor("bob").reject(model, 2)
    entries = len(reg.history(model))
    reg.set_traffic(model, {"canary": (1, 0.2)})
    assert reg.rollback(model, "champion", reason="errors").version == 1
    assert len(reg.history(model)) == entries + 2
    assert len(reg.traffic(model).arms) == 1
    with pytest.raises(Refused, match="no earlier version"):
        reg.rollback(model)
    with pytest.raises(Refused, match="no earlier version"):
        reg.rollback(model, "candidate")


def test_rollback_to_a_version_goes_to_no_other(reg: Registry, model: str):
    for version in (1, 2, 3):
        reg.promote(model, version)
    reg.as_actor("bob").reject(model, 2)
    with pytest.raises(Refused, match="no earlier version to go back to: 2 is REJECTED"):
        reg.rollback(model, to=2)
    with pytest.raises(Refused, match="no earlier version"):
        reg.rollback(model, to=4)
    assert reg.rollback(model, to=1).version == 1


def test_two_rollbacks_of_the_same_version_go_back_once(reg: Registry, model: str):
    for version in (1, 2, 3):
        reg.set_alias(model, "champion", version)
    assert reg.rollback(model, expected=3).version == 2
    with pytest.raises(Stale, match="expected 3 but it is 2 now"):
        reg.rollback(model, expected=3)
    assert reg.get_model(model).aliases["champion"] == 2
    assert reg.rollback(model, expected=2).version == 1


def test_rollback_does_not_go_around_the_policy(reg: Registry, model: str):
    for version in (1, 2, 3):
        reg.promote(model, version)
    reg.set_policy(model, GUARDED)
    with pytest.raises(Refused, match=r"2 gate 'offline' has not run, 0 of 1 approvals.*; 1 gate 'offline'"):
        reg.rollback(model)
    allow(reg, model, 1)
    assert reg.rollback(model).version == 1  # over 2, which nobody approved
    reg.promote(model, 2, override="all else is broken")
    allow(reg, model, 3)
    reg.promote(model, 3)
    assert reg.rollback(model).version == 2  # an override, once given, holds
    reg.set_policy(model, GUARDED.model_copy(update={"guarded": frozenset({"candidate"})}))
    assert reg.rollback(model).version == 1


def test_traffic_is_sticky_and_follows_the_champion(reg: Registry, model: str):
    with pytest.raises(NotFound, match="no champion"):
        reg.set_traffic(model, {"canary": (2, 0.1)})
    reg.set_alias(model, "champion", 1)
    first = reg.traffic(model)
    second = reg.set_traffic(model, {"canary": (2, 0.1)}, expected=first.entry, reason="start")
    with pytest.raises(Stale):
        reg.set_traffic(model, {"canary": (2, 0.9)}, expected=first.entry)
    third = reg.set_traffic(model, {"canary": (2, 0.25)}, shadows=[3, 3])
    assert second.salt == third.salt != ""
    assert third.shadows == (3,)
    units = [str(n) for n in range(2000)]
    assert all(third.assign(u).name == "canary" for u in units if second.assign(u).name == "canary")
    entries = len(reg.history(model))
    assert reg.set_traffic(model, {"canary": (2, 0.25)}, shadows=[3]) == third
    assert len(reg.history(model)) == entries
    reg.set_alias(model, "champion", 2)  # the canary became champion: its arm dissolves
    assert [arm.version for arm in reg.traffic(model).arms] == [2]
    with pytest.raises(Refused, match="split around its champion"):
        reg.delete_alias(model, "champion")
    reg.set_traffic(model, {})
    reg.delete_alias(model, "champion")
    reg.delete_alias(model, "champion")
    with pytest.raises(NotFound):
        reg.traffic(model)


def test_a_new_experiment_has_a_new_salt(reg: Registry, model: str):
    reg.set_alias(model, "champion", 1)
    first = reg.set_traffic(model, {"canary": (2, 0.1)})
    reg.set_traffic(model, {})
    assert reg.set_traffic(model, {"canary": (3, 0.1)}).salt != first.salt


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"champion": (2, 0.1)}, "what the others leave"),
        ({"a": (2, 0.7), "b": (3, 0.7)}, "shares sum to 1.4"),
        ({"a": (2, -0.1)}, "between 0 and 1"),
        ({"a": (2, float("nan"))}, "between 0 and 1"),
        ({"../a": (2, 0.1)}, "is not a name"),
    ],
)
def test_an_invalid_split_is_refused(reg: Registry, model: str, arms: dict, message: str):
    reg.set_alias(model, "champion", 1)
    with pytest.raises(InvalidInput, match=message):
        reg.set_traffic(model, arms)
    with pytest.raises(NotFound, match="m@9 does not exist"):
        reg.set_traffic(model, {"a": (9, 0.1)})


def test_gate_details_keep_nan_as_text(reg: Registry, model: str):
    version = reg.record_gate(model, 1, "offline", False, {"ece": float("nan"), "by": [{"x": float("inf")}]})
    assert version.gates["offline"].details == {"ece": "NaN", "by": [{"x": "Infinity"}]}
    with pytest.raises(InvalidInput):
        reg.record_gate(model, 1, "no/name", True)


def test_followers_see_every_change_with_one_read(reg: Registry, model: str):
    follower = Registry(open_store(reg.store.url), actor="replica").follow(model)
    assert follower.refresh().traffic is None
    reg.promote(model, 3)
    state = follower.refresh()
    assert state.traffic is not None
    assert state.traffic.champion.version == 3
    assert state.aliases == {"champion": 3}


def test_the_state_survives_a_snapshot(reg: Registry, model: str):
    reg.set_policy(model, GUARDED)
    allow(reg, model, 1)
    allow(reg, model, 2)
    reg.promote(model, 1)
    reg.promote(model, 3, override="now")
    reg.set_traffic(model, {"canary": (2, 0.125)}, shadows=[1])
    for number in range(70):
        reg.set_version_tags(model, 1, {"n": str(number)})
    assert reg.store.find(f"models/{model}/journal/snapshot.json") is not None
    cold = Registry(reg.store, actor="x")
    assert cold.get_model(model) == reg.get_model(model)
    assert cold.rollback(model).version == 1


def _promote(url: str, version: int) -> bool:
    try:
        Registry(open_store(url), actor=f"p{version}").promote("m", version, expected=1)
    except Stale:
        return False
    return True


def test_of_eight_promotions_with_one_expected_value_one_wins(
    processes: ForkServerContext, store_url: str, model_files: Path
):
    reg = Registry(open_store(store_url), actor="ada")
    reg.create_model("m")
    for _ in range(9):
        reg.create_version("m", model_files)
    reg.promote("m", 1)
    with ProcessPoolExecutor(8, mp_context=processes) as pool:
        won = [
            version
            for version, ok in zip(
                range(2, 10), pool.map(_promote, [store_url] * 8, range(2, 10)), strict=True
            )
            if ok
        ]
    assert len(won) == 1
    assert reg.get_version("m", "champion").version == won[0]
