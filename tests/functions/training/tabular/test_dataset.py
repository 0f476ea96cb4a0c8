import numpy as np
import pyarrow as pa
import pytest
import torch

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.tabular.preprocessing import (
    category_matrix,
    numeric_matrix,
    split_rows,
    tabular_data,
)
from toque.kernels.hashing import hash_strings


def times(values):
    return pa.array(values, pa.int64()).cast(pa.timestamp("us", "UTC"))


def test_null_numbers_become_nan_and_booleans_numbers():
    table = pa.table({"a": pa.array([1, None, 3]), "b": pa.array([True, False, None])})
    matrix = numeric_matrix(table, ["a", "b"])
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.float32([[1, 1], [np.nan, 0], [3, np.nan]]))


def test_categories_are_hashed_as_their_text_and_null_is_zero():
    table = pa.table({"a": ["x", None, "ü"], "n": [3, 4, None], "b": [True, False, None]})
    got = category_matrix(table, ["a", "n", "b"])
    wanted = [hash_strings(c) for c in (["x", None, "ü"], ["3", "4", None], ["true", "false", None])]
    np.testing.assert_array_equal(got, np.stack(wanted, axis=1))


@pytest.mark.parametrize(
    ("column", "says"),
    [(pa.array(["x"]), "type string"), (times([0]), "type timestamp")],
)
def test_a_numeric_column_of_texts_or_times_is_refused(column, says):
    with pytest.raises(TrainingDataError, match=says):
        numeric_matrix(pa.table({"a": column}), ["a"])


def test_a_fraction_as_category_is_refused():
    with pytest.raises(TrainingDataError, match="list it as numeric"):
        category_matrix(pa.table({"a": [0.5]}), ["a"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([1.0, 1.0], "one class only"),
        ([0.0, None], "1 nulls in 2 rows"),
        ([0.0, 2.0], "0 and 1 only"),
        ([], "no rows"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(labels, says):
    table = pa.table({"x": pa.array([1.0] * len(labels)), "y": pa.array(labels, pa.float64())})
    with pytest.raises(TrainingDataError, match=says):
        tabular_data(table, numeric=["x"], categorical=[], label="y")


def test_an_absent_column_is_named_with_those_there_are():
    with pytest.raises(TrainingDataError, match=r"'z' is not in the table, which has \['x'\]"):
        numeric_matrix(pa.table({"x": [1.0]}), ["z"])


@pytest.mark.parametrize("by", ["days", "time", "random"])
def test_every_row_is_on_one_side_of_a_split(by):
    table = pa.table({"event_timestamp": times(np.arange(1_000) * 3_600_000_000)})
    train, valid = split_rows(table, valid_fraction=0.2, by=by, seed=3)
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(1_000))
    assert 100 <= len(valid) <= 300
    again = split_rows(table, valid_fraction=0.2, by=by, seed=3)
    assert torch.equal(valid, again[1])


def test_a_split_by_days_keeps_a_day_together_and_one_by_time_takes_the_last():
    table = pa.table({"event_timestamp": times(np.arange(1_000) * 3_600_000_000)})
    day = np.arange(1_000) // 24
    train, valid = split_rows(table, valid_fraction=0.2, by="days", seed=0)
    assert not set(day[train]) & set(day[valid])
    train, valid = split_rows(table, valid_fraction=0.2, by="time", seed=0)
    assert train.max() < valid.min()


def test_a_split_that_leaves_nothing_says_what_to_do():
    table = pa.table({"event_timestamp": times([5] * 10)})
    for by in ("days", "time"):
        with pytest.raises(TrainingDataError, match="split by 'random'"):
            split_rows(table, valid_fraction=0.2, by=by, seed=0)
