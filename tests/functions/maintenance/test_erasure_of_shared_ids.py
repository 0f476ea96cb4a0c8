"""Callers choose the ids of predictions, and two may choose one: an erasure takes the subject's, and its label, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from toque.functions import Context, use_context
from toque.functions.maintenance.erasure.jobs import erase_subject
from toque.registry import Table, open_store

SUBJECT, OTHER = "user-1234", "user-12345"
STRINGS = pa.schema([(name, pa.string()) for name in ("prediction_id", "unit", "entities")])


def entities(name: str | None) -> str | None:
    return None if name is None else json.dumps([{"rider": name}])


def predictions(*rows: tuple[str | None, str | None]) -> pa.Table:
    """Predictions of one id, each of a unit and an entity."""
    return pa.table(
        {
            "prediction_id": ["order-7"] * len(rows),
            "unit": [unit for unit, _ in rows],
            "entities": [entities(entity) for _, entity in rows],
        },
        STRINGS,
    )


@pytest.mark.parametrize("others", [(OTHER, OTHER), (None, OTHER), (OTHER, None)])
@pytest.mark.parametrize("by", ["entity", "unit", "both"])
@pytest.mark.parametrize("same_table", [True, False])
def test_anothers_predictions_of_the_same_id_stay(
    tmp_path: Path, by: str, others: tuple[str | None, str | None], *, same_table: bool
):
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    Table(store, "predictions/a").append(predictions((SUBJECT, SUBJECT)))
    place = "predictions/a" if same_table else "batch/b"
    Table(store, place).append(predictions(others))
    Table(store, "labels").append(pa.table({"prediction_id": ["order-7", "order-8"], "label": [1.0, 0.0]}))
    with use_context(Context(store, url, actor="ada")):
        erase_subject({"rider": SUBJECT} if by != "unit" else None, SUBJECT if by != "entity" else None)
    left = pa.concat_tables([Table(store, name).read() for name in {"predictions/a", place}])
    assert left.select(["unit", "entities"]).to_pylist() == [
        {"unit": others[0], "entities": entities(others[1])}
    ]
    assert Table(store, "labels").read()["prediction_id"].to_pylist() == ["order-8"]
