import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.functions.training.tabular_setup import CATEGORICAL, FAST, NAMES, NUMERIC, examples
from toque.functions.evaluation import (
    EvaluationError,
    Gate,
    Invariance,
    RobustnessRule,
    SliceRule,
    evaluate_gate,
    offline_gate,
)
from toque.functions.evaluation.baselines import constant, logistic
from toque.functions.evaluation.metrics.probabilities import log_loss
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.training import train_tabular
from toque.registry import Lineage, Signature, Table, TensorSpec


@pytest.fixture
def tables(context):
    train = Table(context.store, "training").append(examples(seed=0))
    return train, Table(context.store, "held-out").append(examples(2_000, seed=1))


def bad_version(context, model, value, train):
    """A version that answers `value` to everything."""

    class Fixed(torch.nn.Module):
        def forward(self, numeric, categorical):
            return numeric[:, :1] * 0.0 + categorical[:, :1].float() * 0.0 + value

    registry = context.registry()
    registry.create_model(model, exist_ok=True)
    signature = Signature(
        inputs=[
            TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["wind"]),
            TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1], columns=["carrier"]),
        ],
        outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    )
    program = export_program(
        Fixed(), {"numeric": torch.rand(4, 1), "categorical": torch.ones(4, 1, dtype=torch.int64)}
    )
    folder = context.store.url.removeprefix("file://") + "-model"
    import pathlib

    pathlib.Path(folder).mkdir(exist_ok=True)
    save_program(program, pathlib.Path(folder) / "model.pt2")
    return registry.create_version(
        model, folder, signature=signature, lineage=Lineage(datasets=[train])
    ).version


def test_a_good_model_passes_and_the_outcome_is_recorded_with_its_reasons(context, tables):
    train, held_out = tables
    trained = train_tabular("late", train, **NAMES, params=FAST)
    result = evaluate_gate(
        "late", trained.version, held_out, "late", Gate(min_auc=0.6, max_champion_ratio=1.0)
    )
    assert result.passed, result
    assert result.rows == 2_000
    assert result.champion is None
    assert 0 < result.ratios["logistic"] <= 1.01
    assert result.intervals["log_loss"].low < result.metrics["log_loss"] < result.intervals["log_loss"].high
    outcome = context.registry().get_version("late", trained.version).gates["offline"]
    assert outcome.passed
    assert outcome.details["dataset"] == "held-out@" + str(held_out.version)
    assert {check["name"] for check in outcome.details["checks"]} >= {
        "rows",
        "ece",
        "auc",
        "log loss / constant",
    }
    demanding = Gate(
        name="everything",
        entity="route",
        max_ece_high=0.2,
        slices=SliceRule(columns=("carrier", "wind"), max_excess=0.05),
        robustness=RobustnessRule(max_missing_ratio=3.0),
        behaviours=(Invariance(column="carrier", max_change=1.0),),
        max_size_bytes=1,
        max_latency_ms=60_000.0,
    )
    strict = evaluate_gate("late", trained.version, held_out, "late", demanding)
    assert [check.name for check in strict.checks if not check.passed] == ["size, bytes"], strict.checks
    assert len(strict.checks) == 10
    assert sum(point.rows for point in strict.reliability) == 2_000
    assert not context.registry().get_version("late", trained.version).gates["everything"].passed
    nobody = evaluate_gate("late", trained.version, held_out, "late", Gate(entity="nobody"))
    assert not nobody.passed
    assert "no column 'nobody'" in nobody.reason


def test_a_challenger_is_measured_against_the_champion_on_the_same_rows(context, tables):
    train, held_out = tables
    trained = train_tabular("late", train, **NAMES, params=FAST)
    context.registry().set_alias("late", "champion", trained.version)
    worse = bad_version(context, "late", 0.5, train)
    result = evaluate_gate(
        "late", worse, held_out, "late", Gate(max_log_loss_ratio={}, max_champion_ratio=1.0)
    )
    assert not result.passed
    assert result.champion == trained.version
    assert result.ratios["champion"] > 1
    assert result.intervals["log_loss - champion"].low > 0
    assert [check.name for check in result.checks if not check.passed] == [
        "log loss / champion"
    ] or result.metrics["ece"] > 0.1


@pytest.mark.parametrize("value", [float("nan"), 2.0])
def test_predictions_that_are_no_probabilities_do_not_pass(context, tables, value):
    train, held_out = tables
    version = bad_version(context, "broken", value, train)
    result = evaluate_gate("broken", version, held_out, "late")
    assert not result.passed
    assert "probabilities are no numbers" in result.reason
    assert not context.registry().get_version("broken", version).gates["offline"].passed


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (examples(50).slice(0, 0), "no rows"),
        (examples(50).set_column(5, "late", pa.array(np.zeros(50))), "needs both classes"),
    ],
)
def test_data_that_cannot_judge_do_not_pass(context, tables, rows, says):
    train, _ = tables
    version = bad_version(context, "fixed", 0.3, train)
    snapshot = Table(context.store, "useless").append(rows)
    result = evaluate_gate("fixed", version, snapshot, "late")
    assert not result.passed
    assert says in result.reason


def test_a_version_is_not_judged_on_what_it_learnt_from(context, tables):
    train, _ = tables
    version = bad_version(context, "fixed", 0.3, train)
    with pytest.raises(EvaluationError, match="judge it on rows that it has not seen"):
        evaluate_gate("fixed", version, train, "late")


def test_baselines_compute_what_their_names_say():
    train, test = examples(seed=0), examples(2_000, seed=1)
    label = test["late"].to_numpy()
    base = constant(train, test, NUMERIC, CATEGORICAL, "late")
    assert np.unique(base).tolist() == [pytest.approx(train["late"].to_numpy().mean())]
    learnt = logistic(train, test, NUMERIC, CATEGORICAL, "late")
    assert log_loss(label, learnt) < 0.93 * log_loss(label, base)


@pytest.mark.parametrize(
    ("loss", "other", "ratio"), [(0.2, 0.4, 0.5), (0.0, 0.0, 1.0), (0.1, 0.0, float("inf"))]
)
def test_two_without_any_error_are_equal_and_one_with_errors_is_worse_than_that(loss, other, ratio):
    assert offline_gate._ratio(loss, other) == ratio


BY_SLICE = SliceRule(columns=("carrier",), against="champion")


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({"max_champion_ratio": 1.0}, ["log loss / champion"]),
        ({"slices": BY_SLICE}, ["slices against champion"]),
        ({"max_champion_ratio": 1.0, "slices": BY_SLICE}, ["log loss / champion", "slices against champion"]),
    ],
)
def test_whichever_rule_needs_the_champion_it_is_compared_with(context, tables, rules, names):
    train, held_out = tables
    gate = Gate(max_log_loss_ratio={}, max_ece=None, **rules)
    trained = train_tabular("late", train, **NAMES, params=FAST)
    first = evaluate_gate("late", trained.version, held_out, "late", gate)
    assert (first.passed, first.champion, [check.name for check in first.checks]) == (True, None, ["rows"])
    context.registry().set_alias("late", "champion", trained.version)
    worse = bad_version(context, "late", 0.9, train)
    result = evaluate_gate("late", worse, held_out, "late", gate)
    assert result.champion == trained.version
    failed = [check.name for check in result.checks if not check.passed]
    assert [name.partition(":")[0] for name in failed] == names
