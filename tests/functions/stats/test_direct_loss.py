"""The loss of rows without labels, learnt from rows that have some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_info

from toque.functions.stats.estimate import LossModel


def rows(rng: np.random.Generator, count: int, *, at: float = 0.0) -> tuple[Any, Any]:
    """A feature around `at`, one that says nothing, and a squared error that grows with the first: 1 + 2 max(x, 0)."""
    x = np.column_stack([rng.normal(at, 1.0, count), rng.normal(size=count)])
    return x, (1 + 2 * np.maximum(x[:, 0], 0)) * rng.normal(size=count) ** 2


def test_it_follows_where_the_inputs_have_moved_to() -> None:
    rng = np.random.default_rng(1)
    x, loss = rows(rng, 6_000)
    model = LossModel.fit(x, loss)
    for at in (-1.0, 0.0, 1.0):
        asked, realised = rows(rng, 2_000, at=at)
        found = model.estimate(asked)
        assert abs(found.z(float(realised.mean()))) < 4
        assert found.n == 2_000
    assert model.estimate(rows(rng, 2_000, at=1.0)[0]).mean > 1.4 * float(loss.mean())


def test_its_error_covers_what_is_realised() -> None:
    rng = np.random.default_rng(2)
    beyond = 0
    for _ in range(12):
        model = LossModel.fit(*rows(rng, 1_000))
        asked, realised = rows(rng, 300)
        beyond += abs(model.estimate(asked).z(float(realised.mean()))) > 2
    assert beyond <= 3  # with independent rows 4 of 12 have a chance of .002


def test_features_may_be_missing_and_bad_input_is_refused() -> None:
    x, loss = rows(np.random.default_rng(3), 500)
    x[::3, 1] = np.nan
    model = LossModel.fit(x, loss)
    assert model.estimate(x[:10]).mean > 0
    with pytest.raises(ValueError, match="no row"):
        model.estimate(x[:0])
    for bad in ((x[:3], loss[:3]), (x, loss[:-1]), (x, np.full(500, np.nan)), (x[:, 0], loss)):
        with pytest.raises(ValueError, match="finite losses"):
            LossModel.fit(*bad)


def test_its_threads_do_not_spin_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    for name in ("fit", "predict"):
        plain = getattr(HistGradientBoostingRegressor, name)

        def counted(*given: Any, plain: Any = plain) -> Any:
            threads.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp")
            return plain(*given)

        monkeypatch.setattr(HistGradientBoostingRegressor, name, counted)
    x, loss = rows(np.random.default_rng(4), 100)
    LossModel.fit(x, loss).estimate(x)
    assert set(threads) == {1}
