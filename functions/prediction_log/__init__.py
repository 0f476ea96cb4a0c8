"""Prediction log: every answered prediction and every label, durable first, then in a table exactly once.

A record is in a write-ahead file before its answer leaves (`LogWriter.append`), goes from there to a Redis
stream, and from the stream into Delta tables (`drain`). `outcomes` joins predictions with their labels. This
package must not know models, HTTP or Serve.
"""

import warnings
from typing import TYPE_CHECKING

from functions.prediction_log.drain import LABELS_TABLE, DrainResult, drain, predictions_table
from functions.prediction_log.errors import LogFullError, PredictionLogError
from functions.prediction_log.jobs import drain_predictions
from functions.prediction_log.outcomes import latest_labels, made_within, outcomes, predictions
from functions.prediction_log.records import (
    PINNED,
    Label,
    NumericRecordEncoder,
    encode_labels,
    encode_prediction,
    epoch_us,
)
from functions.prediction_log.scan_cache import shared_scans
from functions.prediction_log.shipper import LogWriter
from functions.prediction_log.wal_root import default_wal_root

__all__ = [
    "LABELS_TABLE",
    "PINNED",
    "DrainResult",
    "Label",
    "LogFullError",
    "LogWriter",
    "NumericRecordEncoder",
    "PredictionLogError",
    "default_wal_root",
    "drain",
    "drain_predictions",
    "encode_labels",
    "encode_prediction",
    "epoch_us",
    "latest_labels",
    "made_within",
    "outcomes",
    "predictions",
    "predictions_table",
    "shared_scans",
]

_RENAMED = {"Brief": "NumericRecordEncoder", "Drained": "DrainResult", "micros": "epoch_us"}

if not TYPE_CHECKING:  # a type checker must not take every name as there

    def __getattr__(name: str) -> object:
        """Find a name of the release before, with a DeprecationWarning."""
        if name not in _RENAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        new = f"{__name__}.{_RENAMED[name]}"
        warnings.warn(
            f"{__name__}.{name} is now {new}; the old path goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return globals()[_RENAMED[name]]
