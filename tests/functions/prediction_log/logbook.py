"""Records for the tests of the log, and what is read back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toque.functions.prediction_log import LogWriter, encode_prediction, epoch_us, predictions
from toque.registry.store import ObjectStore

T0 = datetime(2013, 5, 1, 12, tzinfo=UTC)


def record(name: str, *, at: datetime = T0, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "id": name, "model": "late", "version": 3, "arm": "champion", "shadow": False, "unit": "u1",
        "at_us": epoch_us(at), "latency_ms": 1.5, "rows": 1,
        "numeric": np.array([[1.5, np.nan]], np.float32), "categorical": [["UA", ""]],
        "outputs": np.array([[0.25]], np.float32), "missing": [["b"]], "entities": [{"carrier": "UA"}],
    }  # fmt: skip
    return encode_prediction(**(fields | changes))


def all_rows(store: ObjectStore, model: str = "late") -> pa.Table:
    return predictions(store, model, T0 - timedelta(days=400), T0 + timedelta(days=400))


def write(wal_root: Path, url: str, payloads: list[bytes], *, kind: str = "predictions") -> str:
    log = LogWriter(wal_root, kind, url, poll_s=0.01)
    for payload in payloads:
        log.append(payload)
    log.close()
    return log.writer
