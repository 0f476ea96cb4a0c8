"""Labels of several classes, and labels that are numbers, from the table to the saved model."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn import metrics as sk
from torch.nn.functional import cross_entropy

from tests.functions.training.tabular_setup import FAST
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.numbers import mae, r2, rmse
from toque.functions.evaluation.metrics.probabilities import accuracy, class_brier, class_log_loss, top_ece
from toque.functions.model_formats.table_inputs import table_inputs
from toque.functions.training import TabularParams, TrainingDataError, load, train_tabular
from toque.functions.training.tabular.fitting import prepare
from toque.functions.training.tabular.preprocessing import tabular_data
from toque.functions.training.tabular.settings import Columns
from toque.functions.training.tabular.target import fit_inverse_temperature
from toque.functions.tuning.space import Choice, draw_points
from toque.registry import Table

COLUMNS = Columns(["a", "b"], ["c"], "y")
NAMES = {"label": "y", "numeric": ["a", "b"], "categorical": ["c"]}
MULTI = FAST.model_copy(update={"task": "multiclass", "split": "random"})
NUMBER = FAST.model_copy(update={"task": "regression", "split": "random", "epochs": 12})


def rows(count=3_000, seed=0):
    generator = np.random.default_rng(seed)
    return generator, generator.normal(size=(count, 2)), generator.choice(["x", "y", "z"], count)


def table_of(x, c, y):
    return pa.table({"a": x[:, 0], "b": x[:, 1], "c": c, "y": y})


def seasons(seed=0):
    """Three classes: the sign of a number decides two of them, a category the third; a tenth is noise."""
    generator, x, c = rows(seed=seed)
    y = np.where(c == "x", "winter", np.where(x[:, 0] > 0, "summer", "autumn"))
    return table_of(x, c, np.where(generator.random(len(y)) < 0.1, "winter", y))


def prices(seed=0):
    """A number far from 0: 50,000 + 8,000 a + 3,000 where c is x, noise of 1,000."""
    generator, x, c = rows(seed=seed)
    return table_of(x, c, 5e4 + 8e3 * x[:, 0] + 3e3 * (c == "x") + 1e3 * generator.normal(size=len(c)))


def test_several_classes_are_learnt_and_served_by_name(context, tmp_path):
    table = seasons()
    snapshot = Table(context.store, "seasons").append(table)
    trained = train_tabular("season", snapshot, **NAMES, params=MULTI)
    # one in ten of two thirds of the rows is noise that nobody can know
    assert trained.metrics["accuracy"] > 0.9
    registry = context.registry()
    version = registry.get_version("season", trained.version)
    (output,) = version.signature.outputs
    assert (output.name, output.shape, output.columns) == (
        "probability",
        [-1, 3],
        ["autumn", "summer", "winter"],
    )
    registry.download("season", version.version, to=tmp_path)
    model = load(tmp_path)
    probability = model.predict(table_inputs(table, model.signature))["probability"]
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-5)
    names = np.array(output.columns)[probability.argmax(axis=1)]
    assert (names == table["y"].to_numpy(zero_copy_only=False)).mean() == pytest.approx(
        trained.metrics["accuracy"], abs=0.05
    )


def test_numbers_are_learnt_and_served_in_their_own_unit(context, tmp_path):
    table = prices()
    snapshot = Table(context.store, "prices").append(table)
    trained = train_tabular("price", snapshot, **NAMES, params=NUMBER)
    assert trained.metrics["r2"] > 0.95
    registry = context.registry()
    (output,) = registry.get_version("price", trained.version).signature.outputs
    assert (output.name, output.shape) == ("value", [-1, 1])
    registry.download("price", trained.version, to=tmp_path)
    model = load(tmp_path)
    value = model.predict(table_inputs(table, model.signature))["value"][:, 0]
    assert rmse(table["y"].to_numpy(), value) == pytest.approx(trained.metrics["rmse"], rel=0.2)


def test_a_sweep_keeps_the_kind_of_outcome():
    assert {point.task for point in draw_points({}, MULTI, 3, 0)} == {"multiclass"}
    with pytest.raises(TrainingDataError, match=r"\['task'\] cannot be tuned"):
        draw_points({"task": Choice(choices=["binary"])}, MULTI, 3, 0)


@pytest.mark.parametrize(
    ("labels", "task", "says"),
    [
        (["p", "q"], "binary", "set task='multiclass'"),
        ([0, 2], "binary", "set task='multiclass' or task='regression'"),
        ([0.5, 1.5], "multiclass", "task='regression'"),
        (["p", "p"], "multiclass", "has 1 classes in 2 rows"),
        (["p", None], "multiclass", "1 nulls in 2 rows"),
        (["p", "q"], "regression", "a regression needs a number"),
        ([1.0, float("nan")], "regression", "1 values in 2 rows that are no finite number"),
        ([1.0, None], "regression", "1 nulls in 2 rows"),
    ],
)
def test_a_label_that_does_not_fit_the_task_says_what_would(labels, task, says):
    table = pa.table({"x": [1.0, 2.0], "y": labels})
    with pytest.raises(TrainingDataError, match=says):
        tabular_data(table, numeric=["x"], categorical=[], label="y", task=task)


def test_a_label_with_too_many_classes_is_refused():
    table = pa.table({"x": np.ones(1_001), "y": np.arange(1_001)})
    with pytest.raises(TrainingDataError, match="1001 classes in 1001 rows, want 2 to 1000"):
        tabular_data(table, numeric=["x"], categorical=[], label="y", task="multiclass")


def test_a_class_or_number_that_the_training_part_does_not_teach_is_named():
    _, x, c = rows(60)
    day = pa.array(np.arange(60) * 86_400_000_000).cast(pa.timestamp("us", "UTC"))
    late = np.arange(60) >= 50
    by_time = {"split": "time", "valid_fraction": 0.2}
    table = table_of(x, c, np.where(late, "new", np.where(x[:, 0] > 0, "p", "q"))).append_column(
        "event_timestamp", day
    )
    with pytest.raises(TrainingDataError, match=r"classes \['new'\] are absent from the training part"):
        prepare(table, COLUMNS, MULTI.model_copy(update=by_time))
    table = table_of(x, c, late.astype(float)).append_column("event_timestamp", day)
    with pytest.raises(TrainingDataError, match=r"the training part \(48 rows\) has one label only, 0.0"):
        prepare(table.slice(0, 60), COLUMNS, NUMBER.model_copy(update=by_time | {"valid_fraction": 0.2}))


def test_integers_are_classes_in_the_order_of_their_values():
    table = pa.table({"x": [1.0, 2.0, 3.0], "y": [10, 9, 10]})
    data = tabular_data(table, numeric=["x"], categorical=[], label="y", task="multiclass")
    assert (data.classes, data.label.tolist()) == (("9", "10"), [1, 0, 1])
    text = tabular_data(
        table.set_column(1, "y", table["y"].cast(pa.string()).dictionary_encode()),
        numeric=["x"],
        categorical=[],
        label="y",
        task="multiclass",
    )
    assert text.classes == ("10", "9")


def test_temperature_undoes_overconfidence_among_several_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 4, generator=generator)
    label = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator).squeeze(1)
    factor = fit_inverse_temperature(3 * logits, label)
    assert factor == pytest.approx(1 / 3, abs=0.03)  # s.e. below .01
    tried = [float(cross_entropy(3 * logits * f, label)) for f in (factor - 0.02, factor, factor + 0.02)]
    assert min(tried) == tried[1]


def test_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    p = generator.dirichlet([1.0, 2.0, 3.0], 500)
    y = generator.integers(0, 3, 500)
    assert class_log_loss(y, p) == pytest.approx(sk.log_loss(y, p, labels=[0, 1, 2]))
    assert accuracy(y, p) == pytest.approx(sk.accuracy_score(y, p.argmax(axis=1)))
    assert class_brier(y, p) == pytest.approx(
        sk.brier_score_loss(y, p, labels=[0, 1, 2], scale_by_half=False)
    )
    sure = np.eye(3)[y] * 0.8 + 0.2 / 3
    assert top_ece(y, sure) == pytest.approx(0.2 - 0.2 / 3)  # always right, 13 % less sure of it
    true, guess = generator.normal(size=200), generator.normal(size=200)
    assert rmse(true, guess) == pytest.approx(sk.root_mean_squared_error(true, guess))
    assert mae(true, guess) == pytest.approx(sk.mean_absolute_error(true, guess))
    assert r2(true, guess) == pytest.approx(sk.r2_score(true, guess))


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        (lambda: class_log_loss(np.array([0, 3]), np.full((2, 3), 1 / 3)), "class indices 0 to 2"),
        (lambda: class_log_loss(np.array([0]), np.array([[0.5, 0.6]])), "no probabilities, first row 0"),
        (lambda: class_log_loss(np.array([0]), np.array([[np.nan, 1.0]])), "no probabilities"),
        (lambda: accuracy(np.array([], dtype=int), np.empty((0, 2))), "at least one"),
        (lambda: rmse(np.array([1.0]), np.array([np.nan])), "no numbers, first 1.0, nan in row 0"),
        (lambda: mae(np.array([1.0]), np.array([1.0, 2.0])), "as many labels as answers"),
        (lambda: r2(np.ones(3), np.ones(3)), "labels that differ"),
    ],
)
def test_metrics_refuse_answers_out_of_range(measure, says):
    with pytest.raises(EvaluationError, match=says):
        measure()


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="'binary', 'multiclass' or 'regression'"):
        TabularParams(task="ranking")


def steep(count=2_000, seed=0):
    """A number that is a line of wide-tailed columns, with as much noise as line."""
    generator = np.random.default_rng(seed)
    x = generator.standard_t(3, size=(count, 2))
    c = generator.choice(["x", "y", "z"], count)
    y = 3 * x[:, 0] - 2 * x[:, 1] + (c == "x") + 4 * generator.normal(size=count)
    return table_of(x, c, y)


def test_a_number_that_is_a_line_is_not_lost_to_a_line(context, tmp_path):
    from toque.functions.evaluation.baselines import number_linear

    train, later = steep(), steep(seed=1)
    snapshot = Table(context.store, "steep").append(train)
    params = TabularParams(task="regression", split="random")
    trained = train_tabular("steep", snapshot, **NAMES, params=params)
    registry = context.registry()
    registry.download("steep", trained.version, to=tmp_path / "steep")
    model = load(tmp_path / "steep", signature=registry.get_version("steep", trained.version).signature)
    label = later["y"].to_numpy()
    found = rmse(label, model.predict_table(later)["value"].reshape(-1).astype(float))
    line = rmse(label, number_linear(train, later, ["a", "b"], ["c"], "y"))
    assert found < 1.02 * line
    params = params.model_copy(update={"epochs": 1})
    again = train_tabular("steep", snapshot, **NAMES, params=params, start_from=trained.version)
    assert again.metrics["rmse"] < 1.02 * trained.metrics["rmse"]
