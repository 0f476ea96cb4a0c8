"""What of an answer is logged: the exact vector, the outputs, the version and arm, the moment, the time it took."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from functions.prediction_log import LogFullError, encode_prediction
from ray_apps.predictor.datatypes import Array

__all__ = ["Log", "Recorder", "vectors"]

MAX_VALUES = 65_536
"""A row with more values than this is logged without them."""
_log = logging.getLogger("ray.serve")


class Log(Protocol):
    """A durable log."""

    def append(self, payload: bytes) -> int:
        """Keep a record. Raises: LogFullError."""
        ...


class Recorder:
    """Logs answers of one model; counts the records that a full log did not take."""

    def __init__(self, model: str, log: Log | None) -> None:
        self._model, self._log = model, log
        self.written = 0
        self.dropped = 0

    def record(
        self,
        *,
        id: str,  # noqa: A002 - the protocol's word
        version: int,
        arm: str,
        shadow: bool,
        unit: str | None,
        at_us: int,
        latency_ms: float,
        rows: int,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        missing: Sequence[Sequence[str]] | None = None,
        entities: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Make one answer durable. A full log drops and counts it: answering goes first."""
        if self._log is None or rows == 0:
            return
        numeric, categorical = vectors(inputs, rows)
        scores, _ = vectors(outputs, rows)
        payload = encode_prediction(
            id=id, model=self._model, version=version, arm=arm, shadow=shadow, unit=unit, at_us=at_us,
            latency_ms=latency_ms, rows=rows, numeric=numeric, categorical=categorical, outputs=scores,
            missing=missing, entities=entities,
        )  # fmt: skip
        try:
            self._log.append(payload)
        except LogFullError as error:
            if self.dropped % 1_000 == 0:
                _log.error("prediction log of %s: %s; %d dropped so far", self._model, error, self.dropped)
            self.dropped += 1
        else:
            self.written += 1


def vectors(
    tensors: Mapping[str, Array], rows: int
) -> tuple[npt.NDArray[np.float32] | None, list[list[str | None]] | None]:
    """Numbers and texts of some tensors, side by side per row: float32 (rows, F) and lists of C texts.

    Tensors whose first dimension is not the rows, and rows of more than `MAX_VALUES`, are left out (None).
    """
    numbers: list[Array] = []
    texts: list[Array] = []
    for array in tensors.values():
        if array.ndim and array.shape[0] == rows and array.size <= MAX_VALUES * rows:
            (texts if array.dtype.kind == "O" else numbers).append(array)
    numeric = [np.asarray(array, np.float32).reshape(rows, -1) for array in numbers]
    joined = numeric[0] if len(numeric) == 1 else np.hstack(numeric) if numeric else None
    return joined, _texts(texts, rows) if texts else None


def _texts(arrays: Sequence[Array], rows: int) -> list[list[str | None]]:
    found: list[list[str | None]] = [[] for _ in range(rows)]
    for array in arrays:
        for row, values in zip(found, array.reshape(rows, -1).tolist(), strict=True):
            row += [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    return found
