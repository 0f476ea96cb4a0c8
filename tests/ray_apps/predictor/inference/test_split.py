"""The split of a replica over many units: shares, ramps, and two experiments at once."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from typing import Any

import pytest

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.versions.routes import Routes
from toque.registry import LayerShare, TrafficRule
from toque.registry.models.traffic import BUCKETS

UNITS = 100_000


def routes(served_model: ServedModel, shares: dict[int, float]) -> Routes[Any]:
    """The routes of a replica that followed the policy; shares by version."""
    served_model.registry.set_traffic(
        "late", {f"arm-{version}": (version, share) for version, share in shares.items()}
    )
    served_model.refresh()
    return served_model.engine.routes


def arms_of(split: Routes[Any], units: list[str]) -> list[str]:
    return [split.choose(unit)[0] for unit in units]


@pytest.mark.parametrize(
    "followed",  # so many units through all ramps; about 6,300 of the 10,000 buckets are in the fewer ones
    [BUCKETS, pytest.param(UNITS, marks=pytest.mark.proof)],
)
async def test_a_90_9_1_split_is_met_and_twenty_ramps_move_no_unit_out_of_an_arm(
    served_model: ServedModel, followed: int
):
    one, two = served_model.version(0.5), served_model.version(0.75)
    split = routes(served_model, {one: 0.09, two: 0.01})
    units = [f"user-{n}" for n in range(UNITS)]
    counts = Counter(arms_of(split, units))
    assert len(counts) == 3
    for (_, count), share in zip(counts.most_common(), (0.90, 0.09, 0.01), strict=True):
        # Binomial: three shares, false alarm of each 6e-5
        assert abs(count - UNITS * share) <= 4 * sqrt(UNITS * share * (1 - share))
    units = units[:followed]
    before = arms_of(split, units)
    for ramp in range(1, 21):
        split = routes(served_model, {one: 0.09 + 0.02 * ramp, two: 0.01 + 0.01 * ramp})
        after = arms_of(split, units)
        assert not [pair for pair in zip(before, after, strict=True) if pair[0] not in {"champion", pair[1]}]
        before = after
    assert Counter(before)["champion"] < followed * 0.35


@pytest.mark.parametrize("count", [UNITS // 5, pytest.param(UNITS, marks=pytest.mark.proof)])
async def test_arms_of_two_experiments_are_independent(served_model: ServedModel, count: int):
    units = [f"user-{n}" for n in range(count)]
    first = arms_of(routes(served_model, {served_model.version(0.5): 0.5}), units)
    served_model.registry.set_traffic("late", {})  # ends the experiment, and with it its salt
    second = arms_of(routes(served_model, {served_model.version(0.75): 0.5}), units)
    both = sum(a != "champion" and b != "champion" for a, b in zip(first, second, strict=True))
    # Under independence Binomial(count, .25); false alarm 6e-5
    assert abs(both - len(units) / 4) <= 4 * sqrt(len(units) * 0.25 * 0.75)


async def test_held_out_units_are_answered_by_the_champion_and_not_shadowed(served_model: ServedModel):
    canary, shadow = served_model.version(0.5), served_model.version(0.75)
    served_model.registry.begin_holdout("late", "q4", 0.3)
    served_model.registry.set_traffic(
        "late", {"canary": (canary, 0.5)}, shadows=[shadow], layer=LayerShare(name="trips", share=0.5)
    )
    served_model.refresh()
    traffic, arms = served_model.registry.traffic("late"), set[str]()
    for n in range(40):
        unit = f"user-{n}"
        answer = (await served_model.infer(tensors(2, parameters={"unit": unit}))).json()
        assert answer["parameters"]["arm"] == traffic.assign(unit).name
        assert answer["model_version"] == str(canary if answer["parameters"]["arm"] == "canary" else 1)
        arms.add(answer["parameters"]["arm"])
    assert arms == {"champion", "canary", "holdout", "outside"}
    await served_model.predictor.shadows.drained()
    rows = prediction_columns(served_model.log.payloads)["late"].to_pylist()
    seen = {arm: {row["unit"] for row in rows if row["arm"] == arm} for arm in [*arms, "shadow"]}
    assert seen["shadow"] == seen["champion"] | seen["canary"] | seen["outside"]
    assert seen["holdout"] == {f"user-{n}" for n in range(40)} - seen["shadow"]
    by_number = await served_model.infer(
        tensors(parameters={"unit": min(seen["holdout"])}), path=f"/versions/{canary}/infer"
    )
    assert by_number.json()["parameters"]["arm"] == "pinned"  # past the split, as before


async def test_units_are_held_out_also_while_nothing_is_tried(served_model: ServedModel):
    served_model.registry.begin_holdout("late", "q4", 0.3)
    served_model.refresh()
    arms = Counter(arms_of(served_model.engine.routes, [f"user-{n}" for n in range(2_000)]))
    assert set(arms) == {"champion", "holdout"}
    # Binomial(2 000, .3); 4 standard errors
    assert abs(arms["holdout"] - 600) <= 4 * sqrt(2_000 * 0.3 * 0.7)


async def test_an_arm_named_by_header_answers_and_is_no_evidence(served_model: ServedModel):
    served_model.registry.set_traffic("late", {"canary": (served_model.version(0.5), 0.01)})
    served_model.refresh()
    for arm, version in (("canary", "2"), ("champion", "1")):
        answer = await served_model.client.post("/infer", json=tensors(), headers={"X-Toque-Arm": arm})
        assert (answer.json()["model_version"], answer.json()["parameters"]["arm"]) == (version, "pinned")
    rows = prediction_columns(served_model.log.payloads)["late"].to_pylist()
    assert [(row["version"], row["arm"]) for row in rows] == [(2, "pinned"), (1, "pinned")]
    served_model.registry.set_traffic("late", {})
    served_model.refresh()
    answer = await served_model.client.post("/infer", json=tensors(), headers={"X-Toque-Arm": "canary"})
    assert answer.status_code == 404
    assert "no arm 'canary' now; it has ['champion']" in answer.json()["error"]


def rule(name: str, to: int | str, **values: str) -> TrafficRule:
    """A rule whose attributes are each to have one value."""
    when = [{"attribute": attribute, "op": "in", "values": [value]} for attribute, value in values.items()]
    return TrafficRule.model_validate({"name": name, "to": to, "when": when})


async def test_a_rule_decides_before_holdout_layer_and_split_and_the_others_go_where_they_went(
    served_model: ServedModel,
):
    canary, shadow, fresh = served_model.version(0.5), served_model.version(0.75), served_model.version(0.6)
    served_model.registry.begin_holdout("late", "q4", 0.3)
    split = {"canary": (canary, 0.5)}
    part = LayerShare(name="trips", share=0.5)
    served_model.registry.set_traffic("late", split, shadows=[shadow], layer=part)
    before = served_model.registry.traffic("late")
    rules = [rule("dutch", fresh, country="NL"), rule("gold", "champion", tier="gold")]
    served_model.registry.set_traffic("late", split, shadows=[shadow], layer=part, rules=rules)
    served_model.refresh()
    said = [{"country": "NL", "tier": "gold"}, {"tier": "gold"}, {"country": "BE"}, {}]
    for n in range(40):
        unit, attributes = f"user-{n}", said[n % 4]
        answer = (
            await served_model.infer(tensors(parameters={"unit": unit, "attributes": attributes}))
        ).json()
        arm = before.assign(unit)
        wanted = [("rule:dutch", fresh), ("rule:gold", 1), (arm.name, arm.version), (arm.name, arm.version)][
            n % 4
        ]
        assert (answer["parameters"]["arm"], answer["model_version"]) == (wanted[0], str(wanted[1]))
    await served_model.predictor.shadows.drained()
    rows = prediction_columns(served_model.log.payloads)["late"].to_pylist()
    by_rule = {row["unit"] for row in rows if row["arm"].startswith("rule:")}
    assert by_rule == {f"user-{n}" for n in range(40) if n % 4 < 2}
    assert not by_rule & {row["unit"] for row in rows if row["arm"] == "shadow"}


async def test_a_rule_whose_version_does_not_load_is_answered_by_the_champion_under_the_rules_arm(
    served_model: ServedModel,
):
    broken = served_model.version(fail="load")
    served_model.registry.set_traffic("late", {}, rules=[rule("dutch", broken, country="NL")])
    served_model.refresh()
    answer = (await served_model.infer(tensors(parameters={"attributes": {"country": "NL"}}))).json()
    assert (answer["parameters"]["arm"], answer["model_version"]) == ("rule:dutch", "1")
    assert served_model.predictor.describe()["degraded"] == [broken]
    served_model.registry.set_traffic("late", {})
    served_model.refresh()
    answer = (await served_model.infer(tensors(parameters={"attributes": {"country": "NL"}}))).json()
    assert answer["parameters"]["arm"] == "champion"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("NL", "parameters.attributes: expected JSON in a string"),
        (["NL"], "parameters.attributes: expected an object"),
        ({str(n): "x" for n in range(65)}, "at most 64"),
        ({"age": 31}, "parameters.attributes.age: expected a text of at most 256 characters, got 31"),
        ({"age": None}, "parameters.attributes.age: expected a text"),
        ({"name": "x" * 257}, "parameters.attributes.name: expected a text"),
    ],
)
async def test_attributes_that_cannot_be_are_refused_whether_or_not_there_are_rules(
    served_model: ServedModel, attributes: Any, message: str
):
    for rules in ([], [rule("dutch", 1, country="NL")]):
        served_model.registry.set_traffic("late", {}, rules=rules)
        served_model.refresh()
        answer = await served_model.infer(tensors(parameters={"attributes": attributes}))
        assert answer.status_code == 400
        assert message in answer.json()["error"]
    assert served_model.log.payloads == []
