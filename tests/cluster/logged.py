"""Prints which predictions and labels of a time are in the tables, and which are joined: MODEL, begin, end in epoch seconds."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

from toque.functions.prediction_log import latest_labels, outcomes, predictions
from toque.functions.runtime.context import context_of

if __name__ == "__main__":
    model = sys.argv[1]
    begin, end = (datetime.fromtimestamp(float(each), UTC) for each in sys.argv[2:])
    store = context_of(os.environ).store
    predicted = predictions(store, model, begin, end, columns=["prediction_id"])
    labelled = latest_labels(store, received_from=begin)
    joined = outcomes(store, model, begin, end)
    found = {
        "predicted": predicted["prediction_id"].to_pylist(),
        "labelled": labelled["prediction_id"].to_pylist(),
        "joined": joined["prediction_id"].to_pylist(),
    }
    sys.stdout.write(json.dumps(found))
