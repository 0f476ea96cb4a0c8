import numpy as np
import pytest
import torch

from toque.functions.training.tabular.preprocessing import TabularData, fit_preprocessing


def data(numeric, categorical):
    numeric = torch.tensor(numeric, dtype=torch.float32)
    return TabularData(numeric, torch.tensor(categorical, dtype=torch.int64), torch.zeros(len(numeric)))


def fitted(rows, *, max_categories=10):
    return fit_preprocessing(rows, bins=4, min_category_rows=2, max_categories=max_categories)


def test_numbers_are_centred_on_the_median_and_scaled_by_the_quartiles():
    rows = data([[float(n)] for n in range(101)], [[1]] * 101)
    preprocessing = fitted(rows)
    assert preprocessing.center.item() == 50.0
    # quartiles of 0..100 are 25 and 75: a spread of 50 / 1.349
    assert preprocessing.inverse_scale.item() == pytest.approx(1.349 / 50)


def test_missing_and_infinite_numbers_become_the_median_and_raise_their_flag():
    rows = data([[float(n)] for n in range(101)], [[1]] * 101)
    preprocessing = fitted(rows)
    numeric = torch.tensor([[float("nan")], [float("inf")], [float("-inf")], [50.0]])
    scaled, missing, _ = preprocessing(numeric, torch.ones(4, 1, dtype=torch.int64))
    assert scaled.flatten().tolist() == [0.0] * 4
    assert missing.flatten().tolist() == [1.0, 1.0, 1.0, 0.0]


def test_extreme_numbers_stay_within_three():
    rows = data([[float(n)] for n in range(101)], [[1]] * 101)
    scaled, _, _ = fitted(rows)(torch.tensor([[1e30], [-1e30]]), torch.ones(2, 1, dtype=torch.int64))
    assert scaled.abs().max() <= 3.0


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_a_constant_or_empty_column_gives_finite_codes(value):
    rows = data([[value]] * 20, [[1]] * 20)
    preprocessing = fitted(rows)
    scaled, _, _ = preprocessing(rows.numeric, rows.categorical)
    assert torch.isfinite(scaled).all()
    assert torch.isfinite(preprocessing.bins(scaled)).all()


def test_the_piecewise_code_counts_full_bins():
    rows = data([[float(n)] for n in range(101)], [[1]] * 101)
    preprocessing = fitted(rows)
    scaled, _, _ = preprocessing(
        torch.tensor([[0.0], [25.0], [50.0], [100.0]]), torch.ones(4, 1, dtype=torch.int64)
    )
    full = preprocessing.bins(scaled).sum(dim=1)
    np.testing.assert_allclose(full.numpy(), [0.0, 1.0, 2.0, 4.0], atol=1e-4)


def test_categories_keep_their_row_and_what_is_rare_or_new_shares_row_zero():
    common, rare, extreme = 11, -5, -(2**63)
    rows = data(
        [[0.0, 0.0]] * 6, [[common, 0], [common, 0], [extreme, 0], [extreme, 0], [rare, 8], [common, 8]]
    )
    preprocessing = fitted(rows)
    _, _, found = preprocessing(
        torch.zeros(5, 2), torch.tensor([[common, 8], [extreme, 0], [rare, 0], [99, 99], [0, 0]])
    )
    first, second = (found - preprocessing.offset).T.tolist()
    assert first[2] == first[3] == 0  # rare and never seen
    assert second[3] == 0
    assert len({first[0], first[1], first[4], 0}) == 4  # 0, a missing category, always has a row of its own
    assert 0 not in {second[0], second[1]}
    assert int(found.max()) < preprocessing.embedding_rows


def test_only_the_most_frequent_categories_keep_a_row():
    rows = data([[0.0]] * 60, [[n % 3 + 1] for n in range(30)] + [[9]] * 30)
    preprocessing = fitted(rows, max_categories=1)
    _, _, found = preprocessing(torch.zeros(2, 1), torch.tensor([[9], [1]]))
    assert found.flatten()[0] != 0
    assert found.flatten()[1] == 0


def test_columns_may_be_all_numeric_or_all_categorical():
    only_numbers = TabularData(torch.rand(20, 2), torch.empty(20, 0, dtype=torch.int64), torch.zeros(20))
    only_texts = TabularData(torch.empty(20, 0), torch.ones(20, 2, dtype=torch.int64), torch.zeros(20))
    assert fitted(only_numbers).encode(only_numbers).category.tolist() == [[1]] * 20
    assert fitted(only_texts).encode(only_texts).numeric.tolist() == [[0.0]] * 20
