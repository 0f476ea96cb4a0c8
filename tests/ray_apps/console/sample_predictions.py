"""Logged predictions of the sample model, some with a label, one with a trace whose stages were kept."""

import json
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from tests.ray_apps.console.sample_platform import NOW
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS, TRACED_PREDICTIONS
from toque.registry import ObjectStore, Table

MODEL = "price-of-fuel"  # whose log nothing else fills
TRACE = "0af7651916cd43dd8448eb211c80319c"
_STAGES = {
    "span": "b7ad6b7169203331",
    "kept": "slow",
    "began_us": 0,
    "stages_us": [["token", 12], ["features", 412], ["model", 1612]],
}


def row(name: str, at: datetime, **changes: Any) -> dict[str, Any]:
    return {
        "prediction_id": name, "model": MODEL, "version": 1, "arm": "champion", "shadow": False, "unit": "N14228",
        "predicted_at": at, "latency_ms": 1.75, "numeric": [1_400.0, 17.0, 12.5], "categorical": None,
        "outputs": [0.25], "missing": ["wind"], "entities": '{"tailnum": "N14228", "origin": "SFO"}', "day": f"{at:%Y-%m-%d}",
        "trace_id": None, "stages": None,
    } | changes  # fmt: skip


def fill_predictions(store: ObjectStore) -> None:
    """Log sixty predictions, a minute apart; the newest has a label and a trace, and a shadow that saw it."""
    rows = [
        row(
            f"flight-{number:02d}",
            NOW - timedelta(minutes=number + 1),
            unit=f"N{number}",
            entities=json.dumps({"tailnum": f"N{number}"}),
        )
        for number in range(1, 60)
    ]
    newest = NOW - timedelta(minutes=1)
    rows += [
        row("flight-00", newest, trace_id=TRACE, stages=json.dumps(_STAGES), outputs=[0.91]),
        row("flight-00", newest, trace_id=TRACE, version=1, arm="shadow", shadow=True, outputs=[0.32]),
    ]
    table = Table(store, predictions_table(MODEL))
    table.append(pa.Table.from_pylist(rows, schema=TRACED_PREDICTIONS), partition_by=["day"])
    label = {"label": 1.0, "observed_at": NOW, "received_at": NOW, "day": f"{NOW:%Y-%m-%d}"}
    labels = pa.Table.from_pylist([{"prediction_id": "flight-00"} | label], schema=LABELS)
    Table(store, LABELS_TABLE).append(labels, partition_by=["day"])
