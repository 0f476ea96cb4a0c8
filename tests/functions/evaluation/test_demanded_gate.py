"""The gate that a policy sets: its limits and data are not the caller's choice."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.functions.training.tabular_setup import FAST, NAMES, examples
from toque.functions.evaluation import (
    EvaluationError,
    FairnessRule,
    Gate,
    GateResult,
    check_policy_gates,
    evaluate_gate,
    gate_in_force,
)
from toque.functions.training import train_tabular
from toque.registry import GateData, GateDemand, Lineage, ModelPolicy, Refused, Table, TableSnapshot

START, DAY = datetime(2013, 1, 1, tzinfo=UTC), timedelta(days=1)
LIMITS = {"max_log_loss_ratio": {"constant": 0.99}, "min_rows": 100}
DATA = GateData(table="training/late/*-holdout", label="late", entities="flights", min_days=7)
POLICY = ModelPolicy(
    guarded=frozenset({"champion"}),
    gates=(GateDemand(name="offline", limits=LIMITS, data=DATA),),
    approvals=0,
)


def built(context, name: str, start: datetime, end: datetime, *, entities: str = "flights") -> TableSnapshot:
    """A table that says what it was built from, as `build_training_set` writes it."""
    origin = {"entities": {"name": entities, "version": 0}, "label": "late", "start": start, "end": end}
    rows = examples(1_000, seed=1 if name.endswith("holdout") else 0)
    return Table(context.store, name).overwrite(
        rows, metadata={"training_set": json.dumps(origin, default=str)}
    )


@pytest.fixture
def learnt(context) -> TableSnapshot:
    """What versions learn from: January, of a model whose policy sets the gate."""
    context.registry().create_model("late", policy=POLICY)
    return built(context, "training/late/1", START, START + 30 * DAY)


@pytest.fixture
def version(context, learnt, tmp_path) -> int:
    """A version that cannot answer, for what is refused before it is asked."""
    (tmp_path / "weights.bin").write_bytes(b"w")
    made = context.registry().create_version(
        "late", tmp_path / "weights.bin", lineage=Lineage(datasets=[learnt])
    )
    return made.version


@pytest.fixture
def held_out(context) -> TableSnapshot:
    return built(context, "training/late/1-holdout", START + 30 * DAY, START + 37 * DAY)


def judged(version: int, dataset: TableSnapshot, *, label: str = "late", **asked: Any) -> GateResult:
    return evaluate_gate("late", version, dataset, label, **asked)


def test_the_policys_limits_judge_and_let_the_version_go_live(context, learnt, held_out):
    version = train_tabular("late", learnt, **NAMES, params=FAST).version
    for asked in (None, Gate(name="offline"), Gate(**LIMITS)):
        assert judged(version, held_out, gate=asked).passed
    registry = context.registry()
    outcome = registry.get_version("late", version).gates["offline"]
    assert (outcome.demand, outcome.policy) == (POLICY.gates[0].digest, POLICY.digest)
    assert [check["limit"] for check in outcome.details["checks"]][:2] == [100, 0.99]
    registry.promote("late", version)


@pytest.mark.parametrize(
    "asked",
    [Gate(min_rows=1), Gate(**{**LIMITS, "max_log_loss_ratio": {}}), Gate(max_ece=None)],
    ids=["fewer rows", "no baseline", "no calibration"],
)
def test_limits_that_differ_from_the_policys_are_refused(context, version, held_out, asked):
    with pytest.raises(EvaluationError, match=r"the model's policy sets its limits, and \[.*\] differ"):
        judged(version, held_out, gate=asked)
    assert context.registry().get_version("late", version).gates == {}


@pytest.mark.parametrize(
    ("table", "label", "start", "days", "entities", "message"),
    [
        ("mine", "late", 30, 7, "flights", "policy demands 'training/late/*-holdout'"),
        ("training/late/1-holdout", "sunny", 30, 7, "flights", "label='sunny', but the policy demands 'late'"),
        ("training/late/1-holdout", "late", 30, 6, "flights", "spans 6 days.*demands 7 days"),
        ("training/late/1-holdout", "late", 30, 7, "picked", "built from 'picked', but the policy demands 'flights'"),
        ("training/late/1-holdout", "late", 29, 7, "flights", "learnt from rows until .* begins at"),
    ],
    ids=["table", "label", "span", "entities", "seen"],
)  # fmt: skip
def test_other_rows_than_the_policys_are_refused(
    context, version, table, label, start, days, entities, message
):
    begin = START + start * DAY
    dataset = built(context, table, begin, begin + days * DAY, entities=entities)
    with pytest.raises(EvaluationError, match=message.replace("*-", r"\*-")):
        judged(version, dataset, label=label)


def test_rows_of_unknown_origin_and_other_baselines_are_refused(context, version, held_out):
    bare = Table(context.store, "training/late/2-holdout").append(examples(1_000, seed=1))
    with pytest.raises(EvaluationError, match="no record of what it was built from"):
        judged(version, bare)
    with pytest.raises(EvaluationError, match=r"baseline_set=.*leave it out"):
        judged(version, held_out, baseline_set=bare)


def test_a_result_by_hand_does_not_stand_for_the_policys_gate(context, version):
    with pytest.raises(Refused, match="run evaluate_gate"):
        context.registry().record_gate("late", version, "offline", passed=True)


def test_a_gates_demand_reads_as_it_is_written_by_hand():
    assert POLICY.gates == (GateDemand(name="offline", limits=LIMITS, data=DATA),)
    rules = Gate(name="fair", fairness=(FairnessRule(column="origin", measure="calibration", max_gap=0.05),))
    assert gate_in_force(ModelPolicy(gates=(rules.demand(),)), Gate(name="fair"))[0] == rules


def test_a_policy_with_limits_that_no_gate_has_is_refused():
    policy = ModelPolicy(gates=(GateDemand(name="offline", limits={"min_row": 5}),))
    with pytest.raises(EvaluationError, match="min_row"):
        check_policy_gates(policy)
    check_policy_gates(POLICY)
