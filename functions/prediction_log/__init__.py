"""The prediction log: every answered prediction and every label, durable first, in a table exactly once.

A record is in a write-ahead file before its answer leaves (`LogWriter.append`), goes from there to a Redis
stream, and from the stream into Delta tables (`drain`). `outcomes` joins predictions with their labels. This
package knows nothing of models, of HTTP or of Serve.
"""

from functions.prediction_log.drain import LABELS_TABLE, Drained, drain, predictions_table
from functions.prediction_log.errors import LogFullError, PredictionLogError
from functions.prediction_log.jobs import drain_predictions
from functions.prediction_log.outcomes import latest_labels, made_within, outcomes, predictions
from functions.prediction_log.records import PINNED, Brief, Label, encode_labels, encode_prediction, micros
from functions.prediction_log.scan_cache import shared_scans
from functions.prediction_log.shipper import LogWriter
from functions.prediction_log.wal_root import default_wal_root

__all__ = [
    "LABELS_TABLE",
    "PINNED",
    "Brief",
    "Drained",
    "Label",
    "LogFullError",
    "LogWriter",
    "PredictionLogError",
    "default_wal_root",
    "drain",
    "drain_predictions",
    "encode_labels",
    "encode_prediction",
    "latest_labels",
    "made_within",
    "micros",
    "outcomes",
    "predictions",
    "predictions_table",
    "shared_scans",
]
