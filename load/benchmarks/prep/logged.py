"""Rows of a prediction log as a drain leaves them, made at once for whole days."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.prediction_log.records import LOGGED, PREDICTIONS

_SAME = {"version": 1, "arm": "champion", "shadow": False, "propensity": 1.0}


def logged_rows(
    model: str,
    at_us: npt.NDArray[np.int64],
    numeric: npt.NDArray[np.float32],
    outputs: npt.NDArray[np.float32],
    *,
    ids: list[str],
    units: list[str] | None = None,
    categorical: npt.NDArray[np.str_] | None = None,
    propensity: bool = False,
) -> pa.Table:
    """Make a row for each moment (rows,), in microseconds since the epoch.

    numeric, categorical: (rows, columns), outputs: (rows, 1). units: of the requests, by default their ids. propensity: as a column, too.
    """
    count = len(at_us)
    columns: dict[str, Any] = {name: pa.repeat(value, count) for name, value in _SAME.items()} | {
        "model": pa.repeat(model, count),
        "prediction_id": ids,
        "unit": units or ids,
        "predicted_at": at_us,
        "latency_ms": np.full(count, 1.75, np.float32),
        "numeric": _lists(numeric),
        "categorical": pa.nulls(count, PREDICTIONS.field("categorical").type)
        if categorical is None
        else _lists(categorical),
        "outputs": _lists(outputs),
        "missing": pa.nulls(count, pa.list_(pa.string())),
        "entities": pa.nulls(count, pa.string()),
        "day": np.datetime_as_string(at_us.astype("datetime64[us]"), unit="D"),
    }
    names = [*PREDICTIONS.names, *["propensity"] * propensity]
    return pa.table({name: pa.array(columns[name]).cast(LOGGED.field(name).type) for name in names})


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    ends = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))
