"""Prediction log: every answered prediction and every label, durable first, then in a table exactly once.

A record is in a write-ahead file before its answer leaves (`LogWriter.append`), goes from there to a Redis
stream, and from the stream into Delta tables (`drain`). `outcomes` joins predictions with their labels. This
package must not know models, HTTP or Serve.
"""

from toque.functions.prediction_log.errors import LogFullError, LogUnconfirmedError, PredictionLogError
from toque.functions.prediction_log.jobs import drain_predictions, drain_workspace, prediction_log_losses
from toque.functions.prediction_log.reading.outcomes import (
    find_labels,
    latest_labels,
    outcomes,
    predicted_within,
    predictions,
    shared_scans,
)
from toque.functions.prediction_log.records import (
    LABELS_TABLE,
    LOAD_TEST,
    OBSERVED_AHEAD,
    PINNED,
    BatchPlace,
    Label,
    encode_labels,
    encode_prediction,
    predictions_table,
)
from toque.functions.prediction_log.writing.drain import DrainResult, drain
from toque.functions.prediction_log.writing.lost_writers import LOSS_TOPIC, Loss, LossState, losses_of
from toque.functions.prediction_log.writing.pseudonyms import PSEUDONYM_KEY, Pseudonyms, pseudonym
from toque.functions.prediction_log.writing.shipper import LogWriter, close_writers
from toque.functions.prediction_log.writing.wal import LOG_MODE, LogMode, default_wal_root, log_mode_of
from toque.registry.times import epoch_us

__all__ = [
    "LABELS_TABLE",
    "LOAD_TEST",
    "LOG_MODE",
    "LOSS_TOPIC",
    "OBSERVED_AHEAD",
    "PINNED",
    "PSEUDONYM_KEY",
    "BatchPlace",
    "DrainResult",
    "Label",
    "LogFullError",
    "LogMode",
    "LogUnconfirmedError",
    "LogWriter",
    "Loss",
    "LossState",
    "PredictionLogError",
    "Pseudonyms",
    "close_writers",
    "default_wal_root",
    "drain",
    "drain_predictions",
    "drain_workspace",
    "encode_labels",
    "encode_prediction",
    "epoch_us",
    "find_labels",
    "latest_labels",
    "log_mode_of",
    "losses_of",
    "outcomes",
    "predicted_within",
    "prediction_log_losses",
    "predictions",
    "predictions_table",
    "pseudonym",
    "shared_scans",
]
