"""Prometheus series of the consumers of streams: how far behind they are, and what they take in."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import Counter, Gauge

from toque.featurestore.streams.consumer import ConsumerCounts

_LABELS = ("workspace", "source")
LAG = Gauge(
    "toque_stream_lag",
    "Messages of a partition that its consumer has not read yet.",
    (*_LABELS, "partition"),
    multiprocess_mode="livemax",
)
DELAY = Gauge(
    "toque_stream_watermark_delay_seconds",
    "Age of the greatest event time of a partition.",
    (*_LABELS, "partition"),
    multiprocess_mode="livemax",
)
HELD = Gauge(
    "toque_stream_held_events",
    "Events that a consumer holds for its windows.",
    _LABELS,
    multiprocess_mode="livesum",
)
ROWS = Counter("toque_stream_rows", "Events that came in and fit.", _LABELS)
REJECTED = Counter("toque_stream_rejected", "Messages that were kept aside, late ones among them.", _LABELS)
LATE = Counter("toque_stream_late", "Events that were kept aside because they came too late.", _LABELS)
FAILURES = Counter(
    "toque_stream_failures", "Times that a consumer could not begin or go on, and tried again.", _LABELS
)
COMMITS = Counter("toque_stream_commits", "Commits of events to the offline store.", _LABELS)
COMMIT_SECONDS = Counter("toque_stream_commit_seconds", "Seconds that commits took in all.", _LABELS)
FENCED = Counter(
    "toque_stream_fenced", "Commits that were refused because another consumer was first.", _LABELS
)


class ConsumerSeries:
    """Publishes what one consumer counts. Names of its partitions go when they are no longer its own."""

    def __init__(self, workspace: str, source: str) -> None:
        self._labels = (workspace, source)
        self._shown = ConsumerCounts()

    def show(self, counts: ConsumerCounts) -> None:
        """Show a consumer's counts as they are now."""
        before, labels = self._shown, self._labels
        for each in before.lag.keys() - counts.lag.keys():
            self._remove(each)
        for partition, lag in counts.lag.items():
            LAG.labels(*labels, str(partition)).set(lag)
        for partition, delay in counts.watermark_delay_s.items():
            DELAY.labels(*labels, str(partition)).set(delay)
        HELD.labels(*labels).set(counts.held)
        for series, now, then in (
            (ROWS, counts.rows, before.rows),
            (REJECTED, counts.rejected, before.rejected),
            (LATE, counts.late, before.late),
            (COMMITS, counts.commits, before.commits),
            (COMMIT_SECONDS, counts.commit_s, before.commit_s),
            (FENCED, counts.fenced, before.fenced),
            (FAILURES, counts.failures, before.failures),
        ):
            series.labels(*labels).inc(max(0, now - then))
        self._shown = replace(counts)  # the consumer goes on counting in the same object

    def withdraw(self) -> None:
        """Take back what is measured now, when the consumer ends."""
        for each in self._shown.lag:
            self._remove(each)
        HELD.labels(*self._labels).set(0)

    def _remove(self, partition: int) -> None:
        LAG.labels(*self._labels, str(partition)).set(0)
        DELAY.labels(*self._labels, str(partition)).set(0)
