"""Prometheus series of the prediction log: what a writer wrote and shipped, and what drains moved."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import Counter, Gauge

from toque.clusters.telemetry.metrics import Rising, flush_regularly

__all__ = ["DRAINED", "WriterSeries"]

_WRITER = ("workspace", "kind")

WRITTEN = Counter("toque_log_written_records", "Records that a writer put into its files.", _WRITER)
SHIPPED = Counter("toque_log_shipped_records", "Records that writers brought to Redis.", _WRITER)
BACKLOG = Gauge(
    "toque_log_backlog_records",
    "Records in the files that Redis does not have.",
    _WRITER,
    multiprocess_mode="livesum",
)
BACKLOG_BYTES = Gauge(
    "toque_log_backlog_bytes",
    "Size of the files of records that are not drained.",
    _WRITER,
    multiprocess_mode="livesum",
)
CONFIRMS = Gauge(
    "toque_log_unconfirmed_writers",
    "Writers that Redis does not confirm records to now.",
    _WRITER,
    multiprocess_mode="livesum",
)
DRAINED = Counter("toque_log_drained_records", "Records that drains moved into the tables.", _WRITER)


class Writer(Protocol):
    """Writer of the log, as its series need it."""

    @property
    def written(self) -> int:
        """Number of records written so far."""
        ...

    @property
    def shipped(self) -> int:
        """Number of records that Redis has."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """Size of what is not drained."""
        ...

    @property
    def confirms(self) -> bool:
        """Whether Redis confirms records now."""
        ...


class WriterSeries:
    """Series that follow one writer. kind: `predictions` or `labels`."""

    def __init__(self, writer: Writer, workspace: str, kind: str) -> None:
        self._writer, labels = writer, (workspace, kind)
        self._written, self._shipped = Rising(WRITTEN.labels(*labels)), Rising(SHIPPED.labels(*labels))
        self._gauges = (BACKLOG.labels(*labels), BACKLOG_BYTES.labels(*labels), CONFIRMS.labels(*labels))
        self._shown = [0.0, 0.0, 0.0]  # several writers of a process share the gauges
        flush_regularly(self)

    def flush(self) -> None:
        """Move the writer's counts to the series."""
        written, shipped = self._writer.written, self._writer.shipped
        self._written.to(written)
        self._shipped.to(shipped)
        backlog = max(0, written - shipped)
        self._show(backlog, self._writer.waiting_bytes, 0.0 if self._writer.confirms else 1.0)

    def close(self) -> None:
        """Flush for the last time, as the writer ends."""
        self.flush()
        self._show(0.0, 0.0, 0.0)

    def _show(self, *values: float) -> None:
        for place, (gauge, value) in enumerate(zip(self._gauges, values, strict=True)):
            gauge.inc(value - self._shown[place])
            self._shown[place] = value
