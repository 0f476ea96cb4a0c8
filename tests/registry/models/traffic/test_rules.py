"""Traffic rules: matching requests go to the rule's version, others go where they went without rules."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from toque.registry import (
    Arm,
    Condition,
    Holdout,
    InvalidInput,
    LayerPart,
    LayerShare,
    ModelPolicy,
    NotFound,
    Refused,
    Registry,
    RegistryError,
    Traffic,
    TrafficRule,
    open_store,
)
from toque.registry.models.state import decode, encode
from toque.registry.models.traffic import BUCKETS, MAX_RULES, allocate, is_shadowed, size

UNITS = [f"user-{n}" for n in range(50)]


def rule(name: str, to: int | str, *when: tuple[str, str, Sequence[str]]) -> TrafficRule:
    conditions = [{"attribute": attribute, "op": op, "values": values} for attribute, op, values in when]
    return TrafficRule.model_validate({"name": name, "to": to, "when": conditions})


DUTCH = rule("dutch", 2, ("country", "in", ["NL", "BE"]))


@pytest.mark.parametrize(
    ("op", "values", "met", "unmet"),
    [
        ("in", ["NL", "BE"], ["NL", "BE"], ["", "nl", "NL ", "N"]),
        ("in", [""], [""], ["x"]),
        ("prefix", ["N1", "D-"], ["N1", "N101UA", "D-ABC"], ["", "N", "D", "n1"]),
        ("<", ["3"], ["2", "2.999", "-1e9", "-inf"], ["3", "3.0", "x", "", "nan"]),
        ("<=", ["3"], ["3", "3.0", " 2 "], ["3.01", "x", "nan", "inf"]),
        (">", ["-1.5"], ["-1.4", "0", "1e300", "inf"], ["-1.5", "-2", "NL", "nan"]),
        (">=", ["10"], ["10", "9e9"], ["9", "9.99", "1O"]),
    ],
)
def test_conditions_match_as_defined(op: Any, values: Any, met: list[str], unmet: list[str]):
    condition = Condition(attribute="a", op=op, values=values)
    assert [value for value in [*met, *unmet] if condition.holds({"a": value, "b": "x"})] == met
    assert not condition.holds({})
    assert not any(condition.holds({"b": value}) for value in met)


def matches_independently(one: TrafficRule, attributes: dict[str, str]) -> bool:
    """Evaluate a rule independently: every condition, as its symbol reads."""
    for condition in one.when:
        value, given = attributes.get(condition.attribute), condition.values
        if value is None:
            return False
        if condition.op == "in":
            holds = any(value == each for each in given)
        elif condition.op == "prefix":
            holds = any(value[: len(each)] == each for each in given)
        else:
            holds = value.isdecimal() and {
                "<": int(value) < int(given[0]), "<=": int(value) <= int(given[0]),
                ">": int(value) > int(given[0]), ">=": int(value) >= int(given[0]),
            }[condition.op]  # fmt: skip
        if not holds:
            return False
    return True


NAMES = ("country", "app", "tier")
WORDS = ("", "N", "NL", "BE", "3", "4", "10")
names, words = st.sampled_from(NAMES), st.sampled_from(WORDS)
conditions = st.one_of(
    st.tuples(names, st.just("in"), st.lists(words, min_size=1, max_size=3)),
    st.tuples(names, st.just("prefix"), st.lists(words.filter(bool), min_size=1, max_size=2)),
    st.tuples(
        names, st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(["3", "4", "10"]).map(lambda n: [n])
    ),
)
targets = st.one_of(st.integers(1, 9), st.just("champion"))
rule_lists = st.lists(st.tuples(targets, st.lists(conditions, min_size=1, max_size=3)), max_size=5)


@st.composite
def splits(draw: st.DrawFn) -> Traffic:
    """Arms with and without a layer and holdouts."""
    shares = {name: draw(st.integers(0, BUCKETS // 2)) for name in ("a", "b")}
    ranges = allocate({}, shares)
    arms = [
        Arm(name=name, version=2 + i, share=shares[name] / BUCKETS, buckets=ranges[name])
        for i, name in enumerate(shares)
    ]
    champion = Arm(name="champion", version=1, share=1 - sum(arm.share for arm in arms))
    layer = LayerPart(name="growth", claim=0, buckets=((0, 4_000), (5_000, 9_000)))
    return Traffic(
        arms=(champion, *arms),
        salt="s",
        layer=layer if draw(st.booleans()) else None,
        holdouts=(Holdout(name="q4", share=0.2),) if draw(st.booleans()) else (),
    )


@settings(max_examples=60, deadline=None)  # of each, 60 requests: 3 600
@given(plain=splits(), rules=rule_lists, random=st.randoms(use_true_random=False))
def test_the_first_matching_rule_applies_and_other_requests_keep_their_arms(
    plain: Traffic, rules: list[Any], random: Random
):
    ruled = plain.model_copy(
        update={"rules": tuple(rule(f"r{i}", to, *when) for i, (to, when) in enumerate(rules))}
    )
    ruled = Traffic.model_validate_json(ruled.model_dump_json())
    for _ in range(60):
        unit = random.choice(UNITS)
        attributes = {name: random.choice(WORDS) for name in NAMES if random.random() < 0.7}
        first = next((one for one in ruled.rules if matches_independently(one, attributes)), None)
        found = ruled.by_rule(attributes)
        if first is None:
            assert found is None
        else:
            assert found is not None
            assert (found.name, found.version) == (
                f"rule:{first.name}",
                first.to if first.to != "champion" else 1,
            )
            assert found.version in ruled.versions
            assert not is_shadowed(found.name)
        assert ruled.assign(unit) == plain.assign(unit)
    assert pickle.loads(pickle.dumps(ruled)) == ruled  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("field", "message", "value"),
    [
        ("when", "at least 1", {"name": "r", "to": 1, "when": []}),
        ("values", "at least 1", ("a", "in", [])),
        ("values", "256", ("a", "in", ["x" * 257])),
        ("op", "'in'", ("a", "matches", [".*"])),
        ("attribute", "pattern", ("a b", "in", ["x"])),
        ("when", "begins with the prefix ''", ("a", "prefix", ["x", ""])),
        ("when", "compares with one number", ("a", "<", ["1", "2"])),
        ("when", "compares with one number", ("a", ">=", ["many"])),
        ("when", "compares with one number", ("a", ">", ["inf"])),
        ("to", "greater than or equal to 1", {"name": "r", "to": 0, "when": [DUTCH.when[0]]}),
        ("name", "pattern", {"name": "../r", "to": 1, "when": [DUTCH.when[0]]}),
        ("unit", "not permitted", {"name": "r", "to": 1, "when": [DUTCH.when[0]], "unit": "u"}),
    ],
)  # fmt: skip
def test_an_invalid_rule_names_its_field(field: str, message: str, value: Any):
    with pytest.raises(ValidationError) as error:
        TrafficRule.model_validate(value) if isinstance(value, dict) else rule("r", 1, value)
    assert field in str(error.value)
    assert message in str(error.value)


@pytest.fixture
def reg(tmp_path: Path) -> Registry:
    """A model with four versions, the first one champion."""
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    (tmp_path / "weights").write_text("1")
    registry.create_model("late")
    for _ in range(4):
        registry.create_version("late", tmp_path / "weights")
    registry.promote("late", 1)
    return registry


def test_rules_are_one_entry_beside_arms_which_keep_their_units(reg: Registry):
    before = reg.set_traffic("late", {"canary": (3, 0.3)}, layer=LayerShare(name="growth", share=0.5))
    entries = len(reg.history("late"))
    staff = rule("staff", "canary", ("team", "in", ["eng"]))
    after = reg.set_traffic(
        "late", {"canary": (3, 0.3)}, layer=LayerShare(name="growth", share=0.5), rules=[DUTCH, staff]
    )
    assert len(reg.history("late")) == entries + 1
    assert after.rules == (DUTCH, staff.model_copy(update={"to": 3}))  # an arm's name means its version now
    assert after.versions == (1, 3, 2)
    assert [after.assign(unit) for unit in UNITS] == [before.assign(unit) for unit in UNITS]
    same = {"layer": LayerShare(name="growth", share=0.5), "rules": after.rules}
    assert reg.set_traffic("late", {"canary": (3, 0.3)}, **same) == after  # and nothing is appended
    assert len(reg.history("late")) == entries + 1
    assert Registry(reg.store, actor="bob").traffic("late") == after
    assert reg.set_traffic("late", {"canary": (3, 0.3)}, layer=same["layer"]).rules == ()
    assert size(reg.traffic("late").arms[1].buckets) == 3_000


def test_rules_survive_a_snapshot_and_an_older_program_refuses_them(reg: Registry):
    reg.set_traffic("late", {}, rules=[DUTCH])
    state = reg.get_model("late")
    assert decode("late", encode(state)) == state
    assert reg.history("late")[-1].body["kind"] == "traffic-by-rule"  # which it does not know


@pytest.mark.parametrize("end", [lambda reg: reg.promote("late", 3), lambda reg: reg.rollback("late")])
def test_promotion_and_rollback_end_rules_to_a_version(reg: Registry, end: Callable[[Registry], Any]):
    reg.promote("late", 4)
    kept = rule("no-trials", "champion", ("tier", "in", ["gold"]))
    reg.set_traffic("late", {"canary": (3, 0.3)}, rules=[kept, DUTCH])
    end(reg)
    now = reg.traffic("late")
    assert (now.rules, len(now.arms)) == ((kept,), 1)
    by_rule = now.by_rule({"tier": "gold"})
    assert by_rule is not None
    assert by_rule.version == now.champion.version


def test_promoting_the_champion_ends_rules_alone_too(reg: Registry):
    reg.set_traffic("late", {}, rules=[DUTCH])
    reg.promote("late", 1)
    assert reg.traffic("late").rules == ()


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([rule("r", 9, ("a", "in", ["x"]))], NotFound, "late@9 does not exist"),
        ([rule("r", 4, ("a", "in", ["x"]))], Refused, "late@4 is REJECTED"),
        (
            [rule("r", "b", ("a", "in", ["x"]))],
            InvalidInput,
            r"rule 'r' goes to arm 'b'.*\['champion', 'a'\]",
        ),
        ([DUTCH, DUTCH], InvalidInput, "rule 'dutch' is given twice"),
        ([rule(f"r{n}", 2, ("a", "in", ["x"])) for n in range(MAX_RULES + 1)], InvalidInput, "at most 64"),
    ],
)
def test_invalid_rules_are_refused(
    reg: Registry, rules: list[TrafficRule], error: type[RegistryError], message: str
):
    reg.reject("late", 4)
    with pytest.raises(error, match=message):
        reg.set_traffic("late", {"a": (3, 0.1)}, rules=rules)
    assert len(reg.traffic("late").arms) == 1


def test_a_rule_needs_approval_as_an_arm_and_protects_its_version(reg: Registry):
    reg.set_policy("late", ModelPolicy(guarded=frozenset({"champion"})))
    with pytest.raises(Refused, match="not allowed to go live: late@2"):
        reg.set_traffic("late", {}, rules=[DUTCH])
    reg.set_traffic("late", {}, rules=[DUTCH], override="the fair is tomorrow")
    assert [mark.reason for mark in reg.get_version("late", 2).overrides] == ["the fair is tomorrow"]
    reg.set_traffic("late", {}, rules=[DUTCH], shadows=[3])  # whoever carries it along need not say why again
    with pytest.raises(Refused, match="not allowed to go live: late@2"):
        reg.set_traffic("late", {}, rules=[DUTCH, DUTCH.model_copy(update={"name": "belgian"})])
    for forbidden in (reg.delete_version, reg.reject):
        with pytest.raises(Refused, match="traffic rule 'dutch'"):
            forbidden("late", 2)
    with pytest.raises(Refused, match="split around its champion"):
        reg.delete_alias("late", "champion")
