from __future__ import annotations

from typing import Any

import pytest

from tests.functions.monitoring.conftest import ServedModel
from toque.functions.monitoring import SliceOptions, what_changed, worst_slices
from toque.functions.runtime import use_context

MODEL = "late"


def test_no_slice_of_a_healthy_model_is_worse(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(14)
        found = worst_slices(MODEL)
    assert found is not None
    assert (found.version, found.rows) == (1, 14 * 150)
    assert found.tested > 20
    # Near a probability of a half the loss is larger by nature: only the wind, which leads there, may be named.
    assert all("wind" in name for one in found.slices for name in one.where)


def test_the_slice_where_the_model_fails_is_named(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_before = served._row

    def row(asked: Any, i: int, name: str, at: Any, p: float) -> dict[str, Any]:
        wrong = asked["carrier"][i].as_py() == "UA" and asked["hour"][i].as_py() >= 12
        made: dict[str, Any] = as_before(asked, i, name, at, 1 - p if wrong else p)
        return made

    monkeypatch.setattr(served, "_row", row)
    served.register()
    with use_context(served.context()):
        served.serve(14)
        found = worst_slices(MODEL, SliceOptions(columns=("carrier", "hour"), min_excess=0.05))
    assert found is not None
    assert found.slices[0].where[0] == "carrier = UA"
    assert found.slices[0].p < 1e-3
    assert any(len(one.where) == 2 and "hour >" in one.where[0] + one.where[1] for one in found.slices)
    assert found.text.startswith("carrier = UA")


def test_what_changed_names_the_feature_or_nothing(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(7)
        calm = what_changed(MODEL, max_rows=1_500)
        served.shift = 0.8
        served.serve(7)
        moved = what_changed(MODEL, max_rows=1_500)
        assert what_changed(MODEL, max_rows=1_500) == moved
    assert calm is not None
    assert calm.columns == ()
    assert calm.text.startswith("requests and training rows are not told apart")
    assert moved is not None
    assert moved.columns == ("wind",)
    assert moved.auc == pytest.approx(0.71, abs=0.03)  # Φ(.8/√2)


def test_too_little_is_an_answer(served: ServedModel) -> None:
    with use_context(served.context()):
        assert worst_slices(MODEL) is None
        assert what_changed(MODEL, max_rows=1_500) is None
        served.register()
        served.labelled = 0.0
        served.serve(1, requests=20)
        few, none = what_changed(MODEL, max_rows=1_500), worst_slices(MODEL)
    assert few is not None
    assert few.auc is None
    assert "50 of each are needed" in few.text
    assert none is not None
    assert none.loss is None
    assert none.rows == 0
