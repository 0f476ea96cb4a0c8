import os
import subprocess
import sys

import numpy as np
import pytest

from toque.kernels.histogram import histogram, quantile_edges
from toque.kernels.histogram_cases import CASES, Case


def expected(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count with numpy.histogram, whose outer edges are opened."""
    rows = []
    for column, row in zip(values.T, edges, strict=True):
        present = column[~np.isnan(column)]
        cuts = row.astype(present.dtype)[1:-1]
        place = [sum(cut <= x for cut in cuts) for x in present[:2000]]
        counts = np.bincount(np.array(place, dtype=int), minlength=len(row) - 1)
        rows.append([*counts, len(column) - len(present)])
    return np.array(rows).reshape(len(edges), -1)


@pytest.mark.parametrize("case", [c for c in CASES if c.rows <= 130], ids=str)
def test_counts_are_those_of_a_plain_loop(case: Case):
    values, edges = case.arrays()
    assert np.array_equal(histogram(values, edges), expected(values, edges))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_are_those_of_a_search_for_each_value(case: Case):
    values, edges = case.arrays()
    counts = histogram(values, edges)
    values = values.astype(np.promote_types(values.dtype, np.float32))
    for column, row, found in zip(values.T, edges, counts, strict=True):
        places = np.searchsorted(row[1:-1].astype(values.dtype), column[~np.isnan(column)], side="right")
        assert found[:-1].tolist() == np.bincount(places, minlength=case.bins).tolist()
    assert counts.sum(axis=1).tolist() == [case.rows] * case.columns


def test_one_outlier_hides_nothing():
    values = np.random.default_rng(0).standard_normal((1000, 1)).astype(np.float32)
    edges = quantile_edges(values, bins=10)
    spoiled = np.concatenate([values, [[np.float32(1e9)]]])
    assert histogram(spoiled, edges)[0].tolist() == [100] * 9 + [101, 0]


def test_a_spike_has_a_bin_of_its_own():
    values = np.concatenate([np.zeros(600), np.linspace(1, 2, 400)])[:, None]
    edges = quantile_edges(values, bins=10)
    counts = histogram(values.astype(np.float32), edges)[0]
    assert counts.max() == 600
    assert histogram(np.full((1, 1), 1e-6, np.float32), edges)[0].argmax() != counts.argmax()


def test_quantile_edges_are_the_quantiles():
    edges = quantile_edges(np.arange(1, 101)[:, None], bins=4)
    assert edges.tolist() == [[1, 26, 51, 76, 100]]


@pytest.mark.parametrize(
    ("values", "edges", "message"),
    [
        (np.zeros(3), np.zeros((1, 2)), "reshape one column"),
        (np.zeros((3, 2)), np.zeros((1, 2)), "2 columns"),
        (np.zeros((3, 1)), np.zeros((1, 1)), "at least two edges"),
        (np.zeros((3, 1)), np.array([[1.0, 0.0]]), "column 0 are not ascending"),
        (np.zeros((3, 1)), np.array([[0.0, np.nan]]), "column 0 are not ascending"),
    ],
)
def test_shapes_and_edges_that_do_not_fit_are_refused(values: np.ndarray, edges: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        histogram(values, edges)


def test_edges_of_an_empty_column_are_refused():
    with pytest.raises(ValueError, match="column 1 has no finite value"):
        quantile_edges(np.array([[1.0, np.nan]]), bins=2)
    with pytest.raises(ValueError, match="bins >= 1"):
        quantile_edges(np.ones((2, 1)), bins=0)


def test_importing_the_kernels_imports_no_torch():
    code = "import sys, toque.kernels; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
