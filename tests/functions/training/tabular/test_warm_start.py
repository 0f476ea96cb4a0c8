"""A warm start: a training that begins with a version's weights."""

import numpy as np
import pytest

from tests.functions.training import test_tasks
from tests.functions.training.tabular_setup import FAST, NAMES, examples
from toque.functions.model_formats.table_inputs import table_inputs
from toque.functions.training import TrainingDataError, load, train_tabular
from toque.registry import Table

TINY = {"lr": 1e-12, "epochs": 1, "weight_decay": 0.0}


def answers(context, version, table, folder, model="late"):
    context.registry().download(model, version, to=folder)
    loaded = load(folder)
    return next(iter(loaded.predict(table_inputs(table, loaded.signature)).values()))


def log_odds(probability):
    return np.log(probability / (1 - probability))


def test_a_warm_start_begins_with_the_versions_weights_and_names_it_as_parent(
    context, training_set, tmp_path
):
    first = train_tabular("late", training_set, **NAMES, params=FAST)
    more = Table(context.store, "more").append(examples(seed=9))
    still = FAST.model_copy(update=TINY)
    second = train_tabular("late", more, **NAMES, params=still, start_from=first.version)
    table = examples(500, seed=3)
    one = log_odds(answers(context, first.version, table, tmp_path / "one"))
    two = log_odds(answers(context, second.version, table, tmp_path / "two"))
    # a step of nothing leaves all but the temperature, which the new rows set
    factor = float((one * two).sum() / (one * one).sum())
    np.testing.assert_allclose(two, factor * one, atol=1e-4)
    registry = context.registry()
    assert registry.get_version("late", second.version).lineage.parent == first.version
    assert registry.get_run(second.run_id).record().params["start_from"] == str(first.version)
    fresh = train_tabular("late", more, **NAMES, params=FAST.model_copy(update={"epochs": 1}), register=False)
    assert second.metrics["log_loss"] < fresh.metrics["log_loss"]


def test_a_warm_started_regression_keeps_the_versions_scale(context, tmp_path):
    names, params = test_tasks.NAMES, test_tasks.NUMBER
    table = test_tasks.prices()
    one = train_tabular("price", Table(context.store, "a").append(table), **names, params=params)
    dear = table.set_column(3, "y", [2 * table["y"].to_numpy()])
    snapshot = Table(context.store, "b").append(dear)
    still = params.model_copy(update=TINY)
    two = train_tabular("price", snapshot, **names, params=still, start_from=one.version)
    before = answers(context, one.version, table, tmp_path / "one", "price")
    np.testing.assert_allclose(
        answers(context, two.version, table, tmp_path / "two", "price"), before, rtol=1e-5
    )


def test_what_does_not_fit_the_version_is_named(context, training_set):
    one = train_tabular("late", training_set, **NAMES, params=FAST).version
    wide = FAST.model_copy(update={"hidden": (64,)})
    with pytest.raises(TrainingDataError, match=r"'hidden': \(\(32,\), \(64,\)\)"):
        train_tabular("late", training_set, **NAMES, params=wide, start_from=one)
    fewer = NAMES | {"numeric": ["wind"]}
    with pytest.raises(TrainingDataError, match=r"a warm start keeps columns and shape"):
        train_tabular("late", training_set, **fewer, params=FAST, start_from=one)
    with pytest.raises(TrainingDataError, match="what a training starts from is its parent"):
        train_tabular("late", training_set, **NAMES, params=FAST, start_from=one, parent=7)
    assert len(context.registry().list_versions("late")) == 1


def test_a_warm_start_on_other_classes_is_refused(context):
    table = test_tasks.seasons()
    names, params = test_tasks.NAMES, test_tasks.MULTI.model_copy(update={"epochs": 1})
    one = train_tabular("season", Table(context.store, "a").append(table), **names, params=params).version
    renamed = np.where(table["y"].to_numpy(zero_copy_only=False) == "winter", "frost", table["y"])
    other = Table(context.store, "b").append(table.set_column(3, "y", [renamed.tolist()]))
    with pytest.raises(TrainingDataError, match="a warm start needs the same"):
        train_tabular("season", other, **names, params=params, start_from=one)
