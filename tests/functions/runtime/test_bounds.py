"""Every number that a caller may give has bounds: none reaches an allocation, a loop or a sleep beyond them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from toque.functions import function
from toque.functions.runtime import catalog
from toque.functions.runtime.errors import InvalidArguments
from toque.functions.runtime.run.declared import DeclaredFunction

COMPARED = "only compared with a figure that was measured: beyond its range the rule never or always holds"
FACTOR = "a factor in floating point: no size, no number of rounds and no time comes of it"
DATA = "a value of the caller's own data, on no scale that the platform knows"
UNBOUNDED = {
    COMPARED: """
        AnswerGate.min_rows AnswerMonitor.min_rows Direction.change DriftMonitor.min_rows EstimateMonitor.agree
        EstimateMonitor.min_labels EstimateMonitor.min_rows FairnessRule.max_gap FairnessRule.max_gap_high FairnessRule.min_rows
        Gate.max_champion_ratio Gate.max_latency_ms Gate.max_log_loss_ratio{} Gate.max_size_bytes Gate.min_rows Invariance.max_change
        Judge.min_labels OperationsMonitor.capacity OperationsMonitor.cpus OperationsMonitor.min_requests OperationsMonitor.p99_ms
        PerformanceMonitor.min_labels PerformanceMonitor.min_rise PerformanceMonitor.threshold QualityMonitor.max_volume
        QualityMonitor.min_rows QualityMonitor.ranges{}[] RobustnessRule.max_missing_ratio RobustnessRule.max_shift_ratio
        RolloutPolicy.burn_in RolloutPolicy.canary_min_requests RolloutPolicy.min_effect RolloutPolicy.planned_labels
        RolloutPolicy.shadow_min_labels RolloutPolicy.slow_ms RolloutPolicy.wrong_promotions_a_year Scorer.tolerance
        SkewMonitor.min_rows SliceOptions.min_cohorts SliceOptions.min_excess SliceOptions.min_rows SliceRule.max_excess
        SliceRule.min_rows Slo.slow_ms TabularParams.min_category_rows VectorMonitor.min_distance VectorMonitor.min_rows
        """,
    FACTOR: """
        Guardrail.margin Lora.alpha PerformanceMonitor.shift Preference.beta RecipeParams.clip RecipeParams.lr
        RecipeParams.weight_decay RobustnessRule.shift RolloutPolicy.loss_cap TabularParams.clip TabularParams.lr
        TabularParams.weight_decay
        """,
    DATA: """
        Alarm.statistic Alarm.threshold Alarm.version Guardrail.cap Guardrail.floor Invariance.values[] MetricValue.value
        Range.high Range.low Variable.choices[] Variable.default
        """,
}
"""Numbers that may lack a bound, by the reason."""

PLATFORM = [each for each in catalog.discover() if each.reference.startswith("toque.")]


def numbers(
    path: str, schema: Any, definitions: Mapping[str, Any], seen: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """Yield each number in a JSON Schema with its place: `Model.field`, or `function.argument`; `[]` and `{}` for members."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from numbers(name, definitions[name], definitions, seen | {name})
        return
    if schema.get("type") in {"integer", "number"} and not {"enum", "const"} & schema.keys():
        yield path, schema
    inner = [("", each) for name in ("anyOf", "oneOf", "allOf") for each in schema.get(name, ())]
    inner += [("[]", each) for each in (schema.get("items"), *schema.get("prefixItems", ())) if each]
    inner += [("{}", schema["additionalProperties"])] if schema.get("additionalProperties") else []
    inner += [(f".{name}", each) for name, each in schema.get("properties", {}).items()]
    for step, each in inner:
        if isinstance(each, dict):
            yield from numbers(path + step, each, definitions, seen)


def test_every_number_has_bounds_or_a_reason_to_have_none() -> None:
    reasons = {place for places in UNBOUNDED.values() for place in places.split()}
    unbounded = set()
    for each in PLATFORM:
        schema = each.input_schema
        for place, number in numbers(each.name, schema, schema.get("$defs", {}), frozenset()):
            low, high = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
            if not (low & number.keys() and high & number.keys()):
                unbounded.add(place)
    assert unbounded - reasons == set(), (
        "give each ge and le, or name here the reason why it may be unbounded"
    )
    assert reasons - unbounded == set(), "these have bounds by now, or are gone: take them out of the table"


def bounded_arguments() -> Iterator[Any]:
    for each in PLATFORM:
        for name, schema in each.input_schema["properties"].items():
            kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") in {"integer", "number"}]
            if kinds:
                yield pytest.param(each, name, kinds[0], id=f"{each.name}.{name}")


def refused_fields(declared: DeclaredFunction, arguments: Mapping[str, Any]) -> set[str]:
    try:
        declared.signature.load_strictly(arguments)
    except InvalidArguments as error:
        return {problem["field"] for problem in error.problems}
    return set()


@pytest.mark.parametrize(("declared", "name", "schema"), list(bounded_arguments()))
def test_a_number_out_of_bounds_is_refused_by_its_argument(
    declared: DeclaredFunction, name: str, schema: Mapping[str, Any]
) -> None:
    step = 1 if schema["type"] == "integer" else 1e-6
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    wrong = [low - step, high * (1 + step), -(2**63) - 1, 2**63, -1e300, 1e300, math.nan, math.inf, -math.inf]
    others = {other: None for other in declared.signature.signature.parameters if other != name}
    for bound in (schema.get("minimum"), schema.get("maximum")):
        assert bound is None or name not in refused_fields(declared, others | {name: bound}), bound
    for value in wrong:
        with pytest.raises(InvalidArguments) as refused:
            declared.signature.load_strictly(others | {name: value})
        (problem,) = [each for each in refused.value.problems if each["field"].split(".")[0] == name][:1]
        assert problem["value"], "the value is shown"
        assert " " in problem["message"], "and what is allowed"


class Box(BaseModel):
    sizes: list[float]


@function
def bounds_sum(
    numbers: dict[str, list[int | float]], box: Box, start: Annotated[int, Field(ge=0)] = 0
) -> float:
    """Sum numbers without bounds."""
    return start + sum(sum(each) for each in numbers.values()) + sum(box.sizes)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("1e999", "numbers.a.1"),
        ("-1e999", "numbers.a.1"),
        ("NaN", "numbers.a.1"),
    ],
    ids=lambda each: each[:12],
)
def test_no_number_of_a_caller_is_beyond_json(text: str, field: str) -> None:
    arguments = json.loads(f'{{"numbers": {{"a": [1, {text}]}}, "box": {{"sizes": []}}}}')
    with pytest.raises(InvalidArguments) as refused:
        bounds_sum.signature.load_strictly(arguments)
    assert refused.value.problems[0]["field"] == field


def test_the_greatest_and_least_numbers_are_taken() -> None:
    arguments = {"numbers": {"a": [10**400, -(2**63) - 1, 2**53 + 1, 5e-324]}, "box": {"sizes": [1.7e308]}}
    assert bounds_sum.signature.load_strictly(arguments)["numbers"]["a"] == arguments["numbers"]["a"]
