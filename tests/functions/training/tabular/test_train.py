import numpy as np
import pyarrow as pa
import pytest

from tests.functions.training.tabular_setup import FAST, NAMES, NUMERIC, examples
from toque.functions.training import TabularParams, TrainingDataError, TrainingDiverged, load, train_tabular
from toque.registry import Table, TableSnapshot


def test_a_trained_version_carries_all_that_a_reader_asks(context, training_set, tmp_path):
    other = TableSnapshot(name="entities", version=3)
    trained = train_tabular(
        "late",
        training_set,
        **NAMES,
        params=FAST,
        feature_service="flights",
        features={"weather": "digest"},
        datasets=[other],
        tags={"window": "all"},
    )
    registry = context.registry()
    version = registry.get_version("late", trained.version)
    assert version.lineage.run == trained.run_id
    assert version.lineage.datasets == [training_set, other]
    assert version.lineage.features == {"weather": "digest"}
    assert version.lineage.code == train_tabular.digest
    assert version.tags == {"kind": "tabular", "label": "late", "feature_service": "flights", "window": "all"}
    assert version.metrics == trained.metrics
    assert [(spec.name, spec.datatype) for spec in version.signature.inputs] == [
        ("numeric", "FP32"),
        ("categorical", "BYTES"),
    ]
    assert version.signature.inputs[0].columns == NUMERIC
    assert version.code_files == ()
    registry.download("late", version.version, to=tmp_path / "model")
    load(tmp_path / "model", signature=version.signature).warm_up()


def test_a_run_records_settings_epochs_and_data(context, training_set):
    trained = train_tabular("late", training_set, **NAMES, params=FAST, experiment="spring")
    run = context.registry().get_run(trained.run_id)
    record = run.record()
    assert (record.status, record.experiment) == ("FINISHED", "spring")
    assert record.datasets == (training_set,)
    assert record.params["lr"] == "0.01"
    assert record.tags["version"] == str(trained.version)
    assert [point.step for point in run.series("valid_loss")] == [0, 1, 2, 3]
    assert record.metrics["log_loss"] == trained.metrics["log_loss"]


def test_a_child_names_its_parent(context, training_set):
    first = train_tabular("late", training_set, **NAMES, params=FAST)
    second = train_tabular("late", training_set, **NAMES, params=FAST, parent=first.version)
    assert context.registry().get_version("late", second.version).lineage.parent == first.version


def test_without_register_there_is_a_run_and_no_model(context, training_set):
    trained = train_tabular("late", training_set, **NAMES, params=FAST, register=False)
    assert trained.version is None
    assert context.registry().list_models() == []
    assert context.registry().get_run(trained.run_id).record().status == "FINISHED"


def one_class(table):
    return table.set_column(table.column_names.index("late"), "late", pa.array(np.ones(table.num_rows)))


@pytest.mark.parametrize(
    ("table", "names", "params", "error", "says"),
    [
        (one_class(examples(100)), NAMES, FAST, TrainingDataError, "one class only"),
        (examples(100).slice(0, 0), NAMES, FAST, TrainingDataError, "no rows"),
        (examples(600), NAMES, FAST.model_copy(update={"lr": 1e30}), TrainingDiverged, "loss of epoch 0"),
        (
            examples(100),
            NAMES | {"numeric": ["absent"]},
            FAST,
            TrainingDataError,
            "'absent' is not in the table",
        ),
    ],
)
def test_what_cannot_be_learnt_fails_its_run_and_registers_nothing(
    context, table, names, params, error, says
):
    snapshot = Table(context.store, "bad").append(table)
    with pytest.raises(error, match=says):
        train_tabular("late", snapshot, **names, params=params)
    (record,) = context.registry().search_runs("late")
    assert record.status == "FAILED"
    assert says.split()[0] in record.tags["error"]
    assert context.registry().list_models() == []


def test_a_column_named_twice_is_refused_before_a_run_begins(context, training_set):
    with pytest.raises(TrainingDataError, match=r"\['late'\] are named twice"):
        train_tabular("late", training_set, label="late", numeric=["wind", "late"], categorical=[])
    assert context.registry().list_experiments() == []


def test_numbers_alone_or_texts_alone_are_enough(context, training_set):
    for numeric, categorical in (["wind", "load"], []), ([], ["carrier"]):
        trained = train_tabular(
            "late", training_set, label="late", numeric=numeric, categorical=categorical, params=FAST
        )
        assert trained.metrics["auc"] > 0.55


def test_rows_without_a_time_can_be_split_at_random(context):
    table = examples().drop_columns(["event_timestamp"])
    snapshot = Table(context.store, "timeless").append(table)
    trained = train_tabular("late", snapshot, **NAMES, params=FAST.model_copy(update={"split": "random"}))
    assert trained.metrics["auc"] > 0.65
    with pytest.raises(TrainingDataError, match="'event_timestamp' is not in the table"):
        train_tabular("late", snapshot, **NAMES, params=FAST)


def test_several_workers_without_a_cluster_say_what_to_do(context, training_set):
    with pytest.raises(Exception, match=r"call ray.init\(\) first"):
        train_tabular("late", training_set, **NAMES, params=FAST, num_workers=2)


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="learning_rate"):
        TabularParams(learning_rate=1.0)
