"""Estimates of the loss of numbers and counts before labels arrive, learnt from the cohorts whose labels are there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.evaluation.meanings import Loss
from toque.functions.evaluation.realised_loss import score
from toque.functions.monitoring.cohorts import Cohorts
from toque.functions.monitoring.estimates.monitor import (
    EstimateMonitor,
    EstimateResult,
    EstimateState,
    compared_with_labels,
    foreseen,
    load_estimate_state,
    result_row,
)
from toque.functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows
from toque.functions.stats.direct_loss import LossModel
from toque.functions.stats.moments import Floats
from toque.registry import ModelVersion
from toque.registry.times import epoch_us


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Answered rows of the champion in order of time.

    at: microseconds (n,); features: (n, F), the answer first; loss: (n,), NaN without label.
    """

    at: npt.NDArray[np.int64]
    features: Floats
    loss: Floats

    @classmethod
    def of(cls, table: pa.Table, version: int, loss: Loss) -> AnsweredRows:
        """Select the champion's rows of the prediction log, with `numeric` and `categorical`, beside their labels."""
        table = table.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
        rows = score(table, loss=loss)
        keep = (rows.version == version) & ~rows.shadow & rows.answered
        features = np.column_stack([rows.output, *_numbers(table), *_codes(table)])
        return cls(rows.at[keep], features[keep], rows.loss[keep])

    def between(self, start_us: int, end_us: int, *, labelled: bool = False) -> AnsweredRows:
        """Select the rows of a span of time; with `labelled`, those that have a label."""
        keep = (self.at >= start_us) & (self.at < end_us)
        if labelled:
            keep &= np.isfinite(self.loss)
        return AnsweredRows(self.at[keep], self.features[keep], self.loss[keep])


def _numbers(table: pa.Table) -> Iterator[Floats]:
    """Yield each number of the vectors (n,); NaN where a row's is shorter, or it has none."""
    vectors = table["numeric"].to_pylist()
    for place in range(max((len(one) for one in vectors if one), default=0)):
        yield np.array(
            [one[place] if one and len(one) > place else np.nan for one in vectors], dtype=np.float64
        )


def _codes(table: pa.Table) -> Iterator[Floats]:
    """Yield each text of the vectors as its hash (n,), which does not depend on other rows."""
    vectors = table["categorical"].to_pylist()
    for place in range(max((len(one) for one in vectors if one), default=0)):
        texts = [str(one[place]) if one and len(one) > place else "" for one in vectors]
        yield np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.float64)


def watch_number_estimates(
    run: MonitorRun, champion: ModelVersion, monitor: EstimateMonitor, read: ReadRows
) -> MonitorResult:
    """Estimate the loss of every cohort that has ended, and settle those whose labels are due.

    read: as in `watch_estimates`, with `numeric` and `categorical`. A cohort is estimated from those of `lookback` before it whose labels were
    due when it ended.
    """
    grid, memory = Cohorts(monitor.cohort), -(-monitor.lookback // monitor.cohort)
    due = grid.index(run.now)
    state = load_estimate_state(run, champion, monitor, grid)
    if state.next_cohort >= due:
        return run.nothing_due(monitor, champion, state.next_cohort)
    first, begun = min(state.next_label, state.next_cohort), state.next_cohort
    rows = AnsweredRows.of(read(grid.start(first - memory), grid.start(due)), champion.version, monitor.loss)
    estimates: list[EstimateResult] = []
    for index in range(begun, due):
        while state.next_label < grid.index(grid.start(index + 1) - monitor.label_delay):
            state, more = _settle(state, rows, grid, monitor)
            estimates += more
        labelled_rows = _span(rows, grid, state.next_label - memory, state.next_label, labelled=True)
        unlabelled_rows = _span(rows, grid, index, index + 1)
        state = state.model_copy(update={"next_cohort": index + 1})
        if len(unlabelled_rows.at) >= monitor.min_rows and len(labelled_rows.at) >= monitor.min_labels:
            found = LossModel.fit(labelled_rows.features, labelled_rows.loss).estimate(
                unlabelled_rows.features
            )
            how = f"learnt from {len(labelled_rows.at)} labels"
            estimates.append(foreseen(index, monitor.loss, found, how))
            state = state.model_copy(update={"pending": state.pending | {index: {monitor.loss: found}}})
    return run.conclude(
        monitor,
        champion,
        state,
        range(begun, due),
        text=estimates[-1].text if estimates else "too few answers or labels to estimate",
        findings=[result_row(run, champion, grid, one, monitor) for one in estimates],
    )


def _span(rows: AnsweredRows, grid: Cohorts, first: int, end: int, *, labelled: bool = False) -> AnsweredRows:
    return rows.between(epoch_us(grid.start(first)), epoch_us(grid.start(end)), labelled=labelled)


def _settle(
    state: EstimateState, rows: AnsweredRows, grid: Cohorts, monitor: EstimateMonitor
) -> tuple[EstimateState, list[EstimateResult]]:
    """Compare the labels of the next cohort with its estimate: return the state after it and the result."""
    index = state.next_label
    loss = _span(rows, grid, index, index + 1, labelled=True).loss
    pending = {cohort: found for cohort, found in state.pending.items() if cohort > index}
    after = state.model_copy(update={"next_label": index + 1, "pending": pending})
    expected = state.pending.get(index, {}).get(monitor.loss)
    if expected is None or not len(loss):
        return after, []
    return after, [
        compared_with_labels(index, monitor.loss, expected, float(loss.mean()), len(loss), monitor)
    ]
