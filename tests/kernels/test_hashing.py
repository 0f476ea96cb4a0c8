import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.kernels import hash_strings

# Published XXH64 test vectors, seed 0: "" -> ef46db3751d8e999, "a" -> d24ec4f1a98c6e5b, "abc" -> 44bc2cf5ad770999.
VECTORS = {"": 0xEF46DB3751D8E999, "a": 0xD24EC4F1A98C6E5B, "abc": 0x44BC2CF5AD770999}


def test_hashes_are_the_published_xxh64():
    got = hash_strings(list(VECTORS)).view(np.uint64)
    assert got.tolist() == list(VECTORS.values())


def test_missing_is_zero_and_empty_is_not():
    assert hash_strings([None, float("nan"), pd.NA, ""]).tolist()[:3] == [0, 0, 0]
    assert hash_strings([""])[0] != 0


@given(st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=200))
def test_every_container_gives_the_same_hashes(values: list[str | None]):
    expected = hash_strings(values)
    arrow = pa.array(values, pa.string())
    assert expected.dtype == np.int64
    for same in (
        tuple(values),
        iter(values),
        np.array(values, dtype=object),
        pd.Series(values, dtype=object),
        pl.Series(values, dtype=pl.String),
        arrow,
        arrow.cast(pa.large_string()),
        arrow.dictionary_encode(),
        pa.chunked_array([arrow.slice(0, 1), arrow.slice(1)], type=pa.string()),
        arrow.slice(0),
        [None if v is None else v.encode() for v in values],
    ):
        assert np.array_equal(hash_strings(same), expected)


def test_a_dictionary_with_nulls_among_its_words_hashes_them_to_zero():
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    assert hash_strings(array).tolist() == [hash_strings(["a"])[0], 0, 0]


def test_an_array_keeps_its_shape():
    matrix = np.array([["a", None, "b"], ["c", "a", ""]], dtype=object)
    got = hash_strings(matrix)
    assert got.shape == (2, 3)
    assert got[0, 0] == got[1, 1]


@pytest.mark.parametrize("length", [1, 100])
@pytest.mark.parametrize("wrong", [7, 1.5, ["a"]])
def test_items_that_are_not_text_are_refused(length: int, wrong: object):
    with pytest.raises(TypeError, match="cast the column to strings first"):
        hash_strings(["a"] * length + [wrong])


def test_null_typed_and_empty_arrays():
    assert hash_strings(pa.nulls(3)).tolist() == [0, 0, 0]
    assert hash_strings([]).shape == (0,)
    assert hash_strings(pa.array([], pa.string())).shape == (0,)
