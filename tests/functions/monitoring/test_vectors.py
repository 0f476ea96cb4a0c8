"""Embeddings and texts that drift."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.functions.monitoring.conftest import MODEL, ServedModel
from toque.functions.monitoring import VectorMonitor, standing_alarms, watch_embeddings
from toque.functions.runtime import use_context
from toque.functions.stats.text import text_vectors

MONITOR = VectorMonitor(
    embeddings={"place": ("wind", "hour")}, texts=("carrier",), window=3, delay=timedelta(0), max_rows=100
)


def watched(served: ServedModel, days: int) -> list[tuple[str, bool]]:
    told = []
    for _ in range(days):
        served.serve(requests=50)
        told += [(one.subject, one.recovered) for one in watch_embeddings(MODEL, MONITOR).alarms]
    return told


def test_what_is_asked_as_before_is_quiet_and_what_is_not_is_named_until_it_is_well(
    served: ServedModel,
) -> None:
    served.register()
    features = served.features

    def cargo(rows: int, shift: float) -> pa.Table:
        made = features(rows, shift)
        return made.set_column(
            2, "carrier", pa.array(served.rng.choice(["Federal Express", "Kalitta Air"], rows))
        )

    with use_context(served.context()):
        assert watched(served, 6) == []
        served.features = cargo
        assert watched(served, 4) == [("carrier", False)]
        (alarm,) = standing_alarms(MODEL)
        assert (alarm.monitor, alarm.columns) == ("drift", ("carrier",))
        served.features = features
        assert watched(served, 7) == [("carrier", True)]


def test_an_embedding_is_compared_as_a_whole(served: ServedModel) -> None:
    served.register()
    features = served.features

    def together(rows: int, shift: float) -> pa.Table:
        """Each column as before, but hour follows wind: no column shows it alone."""
        made = features(rows, shift)
        order = np.argsort(np.argsort(made["wind"].to_numpy()))
        return made.set_column(1, "hour", pa.array(np.sort(made["hour"].to_numpy())[order]))

    with use_context(served.context()):
        served.features = together
        monitor = MONITOR.model_copy(update={"texts": (), "min_distance": 0.0, "k": 1, "n": 1})
        served.serve(4)
        raised = watch_embeddings(MODEL, monitor).alarms
    assert {(one.subject, one.columns) for one in raised} == {("place", ("wind", "hour"))}


def test_few_rows_are_no_answer_and_an_unknown_column_is_an_error(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(requests=3)
        assert watch_embeddings(MODEL, MONITOR).text == "too few rows to compare"
        served.serve(requests=3)
        with pytest.raises(ValueError, match="gate"):
            watch_embeddings(MODEL, MONITOR.model_copy(update={"texts": ("gate",)}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "needs embeddings or texts"),
        ({"texts": ("a",), "k": 4}, "k <= n"),
        ({"texts": ("a",), "embeddings": {"a": ("x",)}}, "share"),
    ],
)
def test_a_monitor_that_cannot_work_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        VectorMonitor(**fields)


def test_texts_are_near_those_that_are_alike() -> None:
    texts = ["the flight is late", "The flight was late", "parcels go by night", None, ""]
    vectors = text_vectors(texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0, 0])
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5
    assert abs(far) < 0.2
    assert (text_vectors(texts) == vectors).all()
    with pytest.raises(ValueError, match="width=1"):
        text_vectors(["a"], width=1)
