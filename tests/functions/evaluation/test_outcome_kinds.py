"""The gate on versions that answer with classes or numbers."""

import pytest

from tests.functions.training.test_tasks import MULTI, NAMES, NUMBER, prices, seasons
from toque.functions import Context, use_context
from toque.functions.evaluation import Gate, evaluate_gate
from toque.functions.training import train_tabular
from toque.registry import Table, TableSnapshot, open_store


@pytest.fixture(scope="module")
def trained_versions(tmp_path_factory):
    """A store with a version that answers with classes, and one that answers with a number."""
    url = f"file://{tmp_path_factory.mktemp('kinds')}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    with use_context(context):
        for model, make, params in (("season", seasons, MULTI), ("price", prices, NUMBER)):
            snapshot = Table(context.store, f"training-{model}").append(make(seed=0))
            train_tabular(model, snapshot, **NAMES, params=params)
            Table(context.store, f"held-out-{model}").append(make(seed=1).slice(0, 1_000))
    return context


@pytest.fixture
def context(trained_versions):
    with use_context(trained_versions):
        yield trained_versions


def held_out(model):
    return TableSnapshot(name=f"held-out-{model}", version=1)


def test_classes_are_judged_by_log_loss_against_shares_and_logistic_regression(context):
    context.registry().set_alias("season", "champion", 1)
    result = evaluate_gate("season", 1, held_out("season"), "y", Gate(max_champion_ratio=1.0))
    assert result.passed, result
    assert result.metrics["accuracy"] > 0.9
    # three classes, a third of the rows in each but for the noise: the shares' entropy is near log 3 = 1.10
    assert result.metrics["constant_log_loss"] == pytest.approx(1.09, abs=0.03)
    assert result.ratios["logistic"] < 1.0
    assert result.ratios["champion"] == 1.0
    assert result.intervals["accuracy"].low < result.metrics["accuracy"] < result.intervals["accuracy"].high


def test_numbers_are_judged_by_squared_error_against_mean_and_ridge_regression(context):
    result = evaluate_gate(
        "price", 1, held_out("price"), "y", Gate(max_ece=None, max_log_loss_ratio={"constant": 0.05})
    )
    assert result.passed, result
    # 64 of a, 9 * 2/9 of c, 1 of noise: the deviation of the label is 1,000 times the root of 67
    assert result.metrics["constant_squared_error"] == pytest.approx(67e6, rel=0.1)
    assert result.ratios["constant"] == pytest.approx(1 - result.metrics["r2"], rel=0.01)
    linear = evaluate_gate("price", 1, held_out("price"), "y", Gate(max_log_loss_ratio={"linear": 1e-6}))
    assert not linear.passed  # the labels are linear: ridge regression is as good as anything
    assert [check.name for check in linear.checks] == ["rows", "squared error / ridge"]
    assert list(linear.ratios) == ["ridge"]


def test_limits_that_such_outcomes_cannot_show_are_named(context):
    result = evaluate_gate("price", 1, held_out("price"), "y", Gate(max_ece=0.05, min_auc=0.6))
    assert not result.passed
    assert "['max_ece', 'min_auc'], which answers for number cannot show" in result.reason
    classes = TableSnapshot(name="training-season", version=1)
    other = train_tabular("price", classes, **NAMES, params=MULTI.model_copy(update={"epochs": 1})).version
    context.registry().set_alias("price", "champion", 1)
    result = evaluate_gate("price", other, held_out("season"), "y", Gate(max_champion_ratio=1.0))
    assert "champion 1 answers for number [], the version for multiclass ['autumn'" in result.reason


def test_a_class_that_the_version_does_not_know_is_named(context):
    table = seasons(seed=1).slice(0, 100)
    strange = table.set_column(3, "y", [["spring", *table["y"].to_pylist()[1:]]])
    snapshot = Table(context.store, "strange").append(strange)
    result = evaluate_gate("season", 1, snapshot, "y")
    assert (
        "holds ['spring'] in 1 rows, the version knows the classes ['autumn', 'summer', 'winter']"
        in result.reason
    )
