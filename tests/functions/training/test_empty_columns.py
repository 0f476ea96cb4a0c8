"""A feature without a value in any row is refused by name, whatever stands for no value and however the rows lie."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from tests.functions.training.projects import project_of
from toque.functions.project import ModelDefinition
from toque.functions.training import Sklearn, TabularParams, Trainer, TrainingDataError, train_model
from toque.registry import Table

ROWS = 240
FEW = TabularParams(epochs=1, split="random")
EMPTY: dict[str, pa.Array] = {
    "null": pa.nulls(ROWS, pa.float64()),
    "NaN": pa.array([float("nan")] * ROWS),
    "null or NaN": pa.array([None, float("nan")] * (ROWS // 2)),
    "of no type": pa.nulls(ROWS),
}


def rows(**columns: Any) -> pa.Table:
    generator = np.random.default_rng(3)
    a = generator.normal(size=ROWS)
    c = generator.choice(["x", "y", None], ROWS)
    given = {"a": pa.array(a), "b": pa.array(a), "c": pa.array(c), "y": pa.array((a > 0).astype(int))}
    return pa.table(given | columns)


def trained_on(
    monkeypatch: Any,
    context: Any,
    *parts: pa.Table,
    trainer: Trainer | None = None,
    version: int | None = None,
) -> Any:
    definition = ModelDefinition(
        name="late",
        entities="rows",
        label="y",
        numeric=("a", "b"),
        categorical=("c",),
        **({"training": FEW} if trainer is None else {"trainer": trainer}),
    )
    with project_of(monkeypatch, context, definition):
        for part in parts:
            made = Table(context.store, "training/late").append(part)
        return train_model("late", made if version is None else made.model_copy(update={"version": version}))


@pytest.mark.parametrize("kind", EMPTY)
def test_a_number_without_a_value_in_any_row_is_refused_by_name(
    context: Any, monkeypatch: Any, kind: str
) -> None:
    column = EMPTY[kind] if kind != "of no type" else EMPTY[kind].cast(pa.float32())
    with pytest.raises(TrainingDataError, match=r"^b of 'late': null in each of the 240 rows"):
        trained_on(monkeypatch, context, rows(b=column))
    assert context.registry().list_models() == []


def test_all_empty_columns_are_named_and_any_trainer_refuses_them(context: Any, monkeypatch: Any) -> None:
    empty = rows(b=EMPTY["null"], c=pa.nulls(ROWS, pa.string()))
    with pytest.raises(TrainingDataError, match=r"^b, c of 'late'"):
        trained_on(monkeypatch, context, empty, trainer=Sklearn(make=LogisticRegression))


@pytest.mark.parametrize("place", [0, ROWS - 1])
def test_one_value_in_any_part_of_the_table_is_enough(context: Any, monkeypatch: Any, place: int) -> None:
    values = [None] * ROWS
    values[place] = 1.5
    empty, one = rows(b=EMPTY["null"]), rows(b=pa.array(values, pa.float64()))
    assert trained_on(monkeypatch, context, one, empty, empty).version == 1


def test_the_version_that_creates_a_table_is_said_to_have_no_rows(context: Any, monkeypatch: Any) -> None:
    with pytest.raises(TrainingDataError, match="training/late@0 has no rows; version 0 creates a table"):
        trained_on(monkeypatch, context, rows(), version=0)
