"""Any trainer takes the same road: trained by the model's name, registered with signature and metrics, judged and scored."""

import inspect
import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests.functions.training.projects import project_of
from tests.functions.training.test_tasks import prices, seasons
from toque.functions.evaluation import Gate, evaluate_gate
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.evaluation.meanings import MEANINGS
from toque.functions.model_formats.load import load
from toque.functions.project import ModelDefinition
from toque.functions.training import (
    FunctionTrainer,
    LightGBM,
    Sklearn,
    TabularParams,
    TextClassifier,
    Trained,
    Trainer,
    TrainingDataError,
    TrainingError,
    TrainingRequest,
    XGBoost,
    train_model,
)
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.llm import FineTune, fine_tune
from toque.functions.training.recipe.train import RecipeTrainer, train_recipe
from toque.functions.training.request import Workers
from toque.registry import Table

SPLIT = {"split": "random", "valid_fraction": 0.2}


def late(seed=0):
    """Labels of 0 and 1 by a number with gaps and a category with gaps."""
    generator = np.random.default_rng(seed)
    a, c = generator.normal(size=3_000), generator.choice(["x", "y", None], 3_000)
    y = (generator.random(3_000) < 1 / (1 + np.exp(-3 * a - 2 * (c == "x")))).astype(int)
    a[::17] = np.nan
    return pa.table({"a": a, "b": generator.normal(size=3_000), "c": c, "y": y})


def visits(seed=0):
    """Counts whose rate grows with a number and a category."""
    generator = np.random.default_rng(seed)
    a, c = generator.normal(size=3_000), generator.choice(["x", "y", None], 3_000)
    y = generator.poisson(np.exp(0.8 * a + (c == "x")))
    a[::17] = np.nan
    return pa.table({"a": a, "b": generator.normal(size=3_000), "c": c, "y": y})


def skies(seed=0):
    """Several labels a row: each is likelier the larger its number is, one in a place."""
    generator = np.random.default_rng(seed)
    a, b, c = (
        generator.normal(size=2_000),
        generator.normal(size=2_000),
        generator.choice(["x", "y", None], 2_000),
    )
    flags = np.stack([a, b, 2.0 * (c == "x") - 1], axis=1) + 0.5 * generator.normal(size=(2_000, 3)) > 0
    names = np.array(["fog", "rain", "wind"])
    a[::17] = np.nan
    return pa.table({"a": a, "b": b, "c": c, "y": pa.array([names[each].tolist() for each in flags])})


def orders(seed=0):
    """Items of requests of five: they serve the better the larger a number is, and if they are of one category."""
    rows = late(seed)
    a, c = rows["a"].to_numpy(zero_copy_only=False), rows["c"].to_numpy(zero_copy_only=False)
    worth = (
        np.nan_to_num(a.astype(float)) + (c == "x") + np.random.default_rng(seed + 100).normal(size=len(a))
    )
    requests = [f"r{(7 * place) % 600}" for place in range(len(a))]  # a request's rows lie apart
    y = np.clip(np.round(worth), 0, 3).astype(int)
    return rows.drop_columns(["y"]).append_column("q", [requests]).append_column("y", [y])


def points(seed=0):
    """Vectors whose direction follows two numbers and a category."""
    rows = late(seed)
    a, c = rows["a"].to_numpy(zero_copy_only=False), rows["c"].to_numpy(zero_copy_only=False)
    values = np.stack([np.nan_to_num(a.astype(float)), rows["b"].to_numpy(), 2.0 * (c == "x") - 1], axis=1)
    noisy = values + 0.5 * np.random.default_rng(seed + 100).normal(size=values.shape)
    return rows.drop_columns(["y"]).append_column("y", [noisy.tolist()])


ROWS = {
    "binary": late,
    "multiclass": seasons,
    "number": prices,
    "count": visits,
    "multilabel": skies,
    "ranking": orders,
    "vector": points,
}


def pipeline(numbers=("a", "b"), c=1.0, *, outcome="binary"):
    encoded = make_column_transformer(
        (SimpleImputer(), list(numbers)), (OneHotEncoder(handle_unknown="ignore"), ["c"])
    )
    last = {
        "number": Ridge(alpha=1 / c),
        "ranking": Ridge(alpha=1 / c),
        "vector": Ridge(alpha=1 / c),
        "count": PoissonRegressor(alpha=1e-3 / c, max_iter=300),
    }
    last["multilabel"] = OneVsRestClassifier(LogisticRegression(C=c))
    return make_pipeline(encoded, last.get(outcome, LogisticRegression(C=c)))


def forest(*, outcome="binary"):
    learners = {
        "number": HistGradientBoostingRegressor,
        "ranking": HistGradientBoostingRegressor,
        "vector": lambda max_iter: MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=max_iter)),
        "count": partial(HistGradientBoostingRegressor, loss="poisson"),
    }
    learners["multilabel"] = lambda max_iter: MultiOutputClassifier(
        HistGradientBoostingClassifier(max_iter=max_iter)
    )
    learner = learners.get(outcome, HistGradientBoostingClassifier)
    encoded = make_column_transformer(
        (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["c"]), remainder="passthrough"
    )
    return make_pipeline(encoded, learner(max_iter=30))


def own(request: TrainingRequest) -> Trained:
    """Fit a pipeline and write it: all that a user's function has to do."""
    from skops.io import dump

    from toque.functions.model_formats.flavors import sklearn_rows

    rows = request.train_rows
    model = pipeline(c=request.parameters.get("c", 1.0), outcome=request.outcome)
    model.fit(sklearn_rows(request.signature, request.inputs(rows)), request.labels(rows))
    dump(model, request.folder / "model.skops")
    return Trained()


def definition(trainer, outcome="binary", **changes: Any) -> ModelDefinition:
    fields = {"name": "m", "entities": "rows", "label": "y", "numeric": ("a", "b"), "categorical": ("c",)}
    fields |= {"group": "q"} if outcome == "ranking" else {}
    return ModelDefinition(**{**fields, "outcome": outcome, "trainer": trainer, **changes})


TRAINERS = {
    "xgboost": lambda _: XGBoost(rounds=60, **SPLIT),
    "lightgbm": lambda _: LightGBM(rounds=60, **SPLIT),
    "sklearn": lambda outcome: Sklearn(make=pipeline, values={"outcome": outcome, "c": 1.0}, **SPLIT),
    "trees of sklearn": lambda outcome: Sklearn(make=forest, values={"outcome": outcome}, **SPLIT),
    "a function": lambda _: FunctionTrainer(function=own, values={"c": 1.0}, **SPLIT),
    "tabular": lambda _: TabularParams(epochs=4, **SPLIT),
}


UNLEARNT = {"tabular": ("count", "multilabel", "ranking", "vector"), "lightgbm": ("multilabel", "vector")}


@pytest.mark.parametrize(
    ("trainer", "outcome"),
    [(each, outcome) for each in TRAINERS for outcome in ROWS if outcome not in UNLEARNT.get(each, ())],
)
def test_every_trainer_takes_the_same_road(monkeypatch, context, trainer, outcome):
    training = Table(context.store, "training").append(ROWS[outcome](seed=0))
    later = Table(context.store, "later").append(ROWS[outcome](seed=1))
    made = definition(TRAINERS[trainer](outcome), outcome)
    with project_of(monkeypatch, context, made):
        trained = train_model("m", training, parent=None, tags={"window": "all"})
        version = context.registry().get_version("m", trained.version)
        assert (version.tags["kind"], version.tags["window"]) == (made.learner.kind, "all")
        assert version.lineage.datasets == [training]
        assert version.metrics[MEANINGS[outcome].main_metric] == pytest.approx(
            trained.metrics[MEANINGS[outcome].main_metric]
        )
        (run,) = context.registry().search_runs("m", "attributes.status = 'FINISHED'")
        assert (run.id, run.tags["trainer"]) == (trained.run_id, made.learner.kind)
        assert trained.cost.cpu_hours > 0
        lenient = Gate(max_log_loss_ratio={"constant": 0.9}, max_ece=None, max_champion_ratio=None)
        judged = evaluate_gate("m", trained.version, later, "y", lenient)
        assert judged.passed, judged
        assert judged.metrics[MEANINGS[outcome].main_metric] == pytest.approx(
            trained.metrics[MEANINGS[outcome].main_metric], rel=0.35
        )
        scored = predict_batch("m", later, trained.version)
        assert scored.rows_scored == later_rows(context, later)


def later_rows(context, snapshot):
    return Table(context.store, snapshot.name).read(version=snapshot.version).num_rows


@pytest.mark.parametrize("trainer", ["xgboost", "lightgbm", "trees of sklearn"])
def test_unknown_and_missing_texts_and_numbers_are_answered(monkeypatch, context, tmp_path, trainer):
    training = Table(context.store, "training").append(late())
    with project_of(monkeypatch, context, definition(TRAINERS[trainer]("binary"))):
        trained = train_model("m", training)
    context.registry().download("m", trained.version, to=tmp_path / "m")
    version = context.registry().get_version("m", trained.version)
    model = load(tmp_path / "m", signature=version.signature, trusted_types=Sklearn.trusted_types)
    answer = model.predict(
        {"numeric": [[2.0, 0.0], [np.nan, np.nan], [-2.0, 0.0]], "categorical": [["x"], [None], ["unseen"]]}
    )["probability"]
    assert answer.shape == (3, 1)
    assert answer[0] > 0.9
    assert answer[2] < 0.2


def test_parameters_change_the_trainer_and_are_kept_for_the_next_training(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    with project_of(monkeypatch, context, definition(XGBoost(rounds=5, **SPLIT))):
        trained = train_model("m", training, parameters={"max_depth": 2})
        with pytest.raises(TrainingDataError, match="max_deep"):
            train_model("m", training, parameters={"max_deep": 2})
    version = context.registry().get_version("m", trained.version)
    assert json.loads(version.tags["parameters"]) == {"max_depth": 2}
    run = context.registry().get_run(trained.run_id)
    assert (run.record().params["max_depth"], run.record().params["rounds"]) == ("2", "5")
    assert len(run.series("valid_loss")) == 5


def test_what_a_function_forgets_is_said_and_nothing_is_registered(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    for broken, message in ((lambda _: None, "return a Trained"), (lambda _: Trained(), "export the model")):
        trainer = FunctionTrainer(function=broken, **SPLIT)
        with (
            project_of(monkeypatch, context, definition(trainer)),
            pytest.raises(TrainingError, match=message),
        ):
            train_model("m", training)
    assert context.registry().find_version("m", 1) is None


def test_a_tensor_column_is_an_input_of_its_own(monkeypatch, context):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(600, 4, 4)).astype(np.float32)
    label = (images[:, 0, 0] > 0).astype(int)
    table = pa.table({"image": images.tolist(), "y": label})
    training = Table(context.store, "training").append(table.slice(0, 400))
    later = Table(context.store, "later").append(table.slice(400))
    shape = {"numeric": (), "categorical": (), "tensors": ("image",)}
    made = definition(Sklearn(make=LogisticRegression, **SPLIT), **shape)
    with project_of(monkeypatch, context, made):
        trained = train_model("m", training)
        (spec,) = context.registry().get_version("m", trained.version).signature.inputs
        assert (spec.name, spec.shape) == ("image", [-1, 4, 4])
        gate = Gate(max_log_loss_ratio={"constant": 0.9, "logistic": 1.5}, min_rows=100, max_ece=None)
        judged = evaluate_gate("m", trained.version, later, "y", gate)
    assert judged.passed, judged


def test_a_model_without_texts_is_judged_beside_a_line(monkeypatch, context):
    training = Table(context.store, "training").append(late().drop_columns(["c"]))
    later = Table(context.store, "later").append(late(seed=1).drop_columns(["c"]))
    with project_of(monkeypatch, context, definition(TabularParams(epochs=4, **SPLIT), categorical=())):
        trained = train_model("m", training)  # whose signature has an input of no columns
        gate = Gate(max_log_loss_ratio={"constant": 0.95, "linear": 1.2}, max_ece=None)
        assert evaluate_gate("m", trained.version, later, "y", gate).passed


def test_a_definition_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one argument, a TrainingRequest"):
        definition(lambda: None)
    with pytest.raises(ValueError, match="neither a Trainer"):
        definition(XGBoost)
    with pytest.raises(ValueError, match="leave one out"):
        definition(XGBoost(), training=TabularParams())
    with pytest.raises(ValueError, match="no tensors"):
        definition(None, tensors=("image",))
    with pytest.raises(ValueError, match="leave the task out"):
        definition(None, "number", training=TabularParams(task="binary"))
    assert definition(own).learner.kind == "function"
    assert definition(None, "number").learner == TabularParams(task="regression")


def test_definitions_of_before_keep_their_outcome():
    of_before = ModelDefinition(
        name="m",
        service="m",
        entities="rows",
        label="y",
        numeric=("a",),
        training=TabularParams(task="regression"),
    )
    assert (of_before.outcome, of_before.learner) == ("number", of_before.training)


class Own(Trainer):
    """A trainer of a user with parameters of its own."""

    shrink: float = 1.0

    def __call__(self, request: TrainingRequest) -> Trained:
        return own(request)


def test_a_users_own_class_declares_its_parameters(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    with project_of(monkeypatch, context, definition(Own(**SPLIT))):
        trained = train_model("m", training, parameters={"shrink": 0.5})
    assert context.registry().get_run(trained.run_id).record().params["shrink"] == "0.5"


@pytest.mark.parametrize("function", [fine_tune, train_recipe])
def test_a_declared_model_is_trained_with_all_that_other_trainings_may_ask_of_workers(function):
    def resources(training):
        names = inspect.signature(training).parameters
        own = {"num_workers", "min_workers", "slow_workers", "sharding", "tensor", "card"}
        return {name: names[name].default for name in names if name in own or name.startswith("worker_")}

    assert resources(train_model) == resources(function)


def test_adapters_are_refused_where_layers_are_split_whoever_trains():
    workers = Workers(2, sharding="shard", tensor=2)
    request = SimpleNamespace(model="m", training_set=object(), workers=workers)
    with pytest.raises(TrainingDataError, match="tensor=2 with lora: adapters"):
        FineTune(base="base@1")(request)


@pytest.mark.parametrize(
    "trainer",
    [
        XGBoost(),
        LightGBM(),
        Sklearn(make=pipeline),
        RecipeTrainer(recipe="none"),
        FineTune(base="base@1"),
        TextClassifier(base="base@1"),
    ],
    ids=lambda trainer: trainer.kind,
)
def test_a_trainer_that_cannot_begin_with_a_version_refuses_it_before_there_is_a_run(context, trainer):
    job = TrainingJob("m", trainer, trainer.code if trainer.kind != "recipe" else "", start_from=3)
    with pytest.raises(TrainingDataError, match=f"start_from=3: trainer '{trainer.kind}' of 'm' cannot"):
        run_training(context.registry(), job, None)
    assert context.registry().search_runs("m") == []


@pytest.mark.parametrize("as_class", [True, False])
def test_a_projects_own_trainer_is_told_what_to_begin_with(monkeypatch, context, as_class):
    told = []

    def own_too(request):
        told.append(request.start_from)
        return own(request)

    monkeypatch.setattr(Own, "__call__", lambda _, request: own_too(request))
    trainer = Own(**SPLIT) if as_class else FunctionTrainer(function=own_too, **SPLIT)
    training = Table(context.store, "training").append(late())
    with project_of(monkeypatch, context, definition(trainer)):
        versions = [train_model("m", training, start_from=start).version for start in (None, 1)]
    assert told == [None, 1]
    parents = [context.registry().get_version("m", each).lineage.parent for each in versions]
    assert parents == [None, 1]


@pytest.mark.parametrize("kind", [FineTune, TextClassifier])
@pytest.mark.parametrize("length", [-1, 0, 7])
def test_a_row_of_a_tuned_model_has_eight_tokens_at_least(kind, length):
    with pytest.raises(ValueError, match="greater than or equal to 8"):
        kind(base="base@1", length=length)
    with pytest.raises(TrainingDataError, match="greater than or equal to 8"):
        kind(base="base@1").with_parameters({"length": length})
    assert kind(base="base@1", length=8).length == 8


def test_the_schema_of_a_fine_tune_says_its_least_length():
    assert fine_tune.signature.input_schema["properties"]["length"]["minimum"] == 8
    assert FineTune.model_json_schema()["properties"]["length"]["minimum"] == 8
    assert TextClassifier.model_json_schema()["properties"]["length"]["minimum"] == 8
