"""The same estimates for answers that are numbers: what a cohort will lose, learnt from the cohorts whose labels are there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from functions.evaluation.realised_loss import Loss, score
from functions.monitoring.cohorts import Cohorts, micros
from functions.monitoring.estimates.classes import (
    BLIND,
    EstimateMonitor,
    EstimateState,
    Said,
    row_of,
    settled,
    state_of,
)
from functions.monitoring.watch import Post, Read, Watched
from functions.stats.direct_loss import LossModel
from functions.stats.moments import Floats
from registry import ModelVersion

MEASURE: Loss = "squared_error"


@dataclass(frozen=True, slots=True)
class Answered:
    """Answered rows in order of time. at: microseconds (n,); features: (n, F), the answer first; loss: (n,), NaN without label."""

    at: npt.NDArray[np.int64]
    features: Floats
    loss: Floats

    @classmethod
    def of(cls, table: pa.Table, version: int) -> Answered:
        """The champion's rows of the prediction log, with `numeric` and `categorical`, beside their labels."""
        table = table.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
        rows = score(table, loss=MEASURE)
        keep = (rows.version == version) & ~rows.shadow & rows.answered
        features = np.column_stack([rows.output, *_numbers(table), *_codes(table)])
        return cls(rows.at[keep], features[keep], rows.loss[keep])

    def between(self, start_us: int, end_us: int, *, labelled: bool = False) -> Answered:
        """The rows of a span of time; those that have a label only, if asked."""
        keep = (self.at >= start_us) & (self.at < end_us)
        if labelled:
            keep &= np.isfinite(self.loss)
        return Answered(self.at[keep], self.features[keep], self.loss[keep])


def _numbers(table: pa.Table) -> Iterator[Floats]:
    """Each number of the vectors (n,); NaN where a row's is shorter, or it has none."""
    vectors = table["numeric"].to_pylist()
    for place in range(max((len(one) for one in vectors if one), default=0)):
        yield np.array(
            [one[place] if one and len(one) > place else np.nan for one in vectors], dtype=np.float64
        )


def _codes(table: pa.Table) -> Iterator[Floats]:
    """Each text of the vectors as a number of its hash (n,): the same whatever rows are read with it."""
    vectors = table["categorical"].to_pylist()
    for place in range(max((len(one) for one in vectors if one), default=0)):
        texts = [str(one[place]) if one and len(one) > place else "" for one in vectors]
        yield np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.float64)


def watch_number_estimates(
    post: Post, champion: ModelVersion, monitor: EstimateMonitor, read: Read
) -> Watched:
    """As `watch_estimates`, for the squared error of answers that are numbers.

    read: as there, with `numeric` and `categorical`. A cohort is estimated from those of `lookback` before it whose labels were
    due when it ended.
    """
    grid, memory = Cohorts(monitor.cohort), -(-monitor.lookback // monitor.cohort)
    due = grid.index(post.now)
    state = state_of(post, champion, monitor, grid)
    if state.next_cohort >= due:
        return post.nothing_due(monitor.kind, champion)
    first, begun = min(state.next_label, state.next_cohort), state.next_cohort
    rows = Answered.of(read(grid.start(first - memory), grid.start(due)), champion.version)
    said: list[Said] = []
    for index in range(begun, due):
        while state.next_label < grid.index(grid.start(index + 1) - monitor.label_delay):
            state, more = _settle(state, rows, grid, monitor)
            said += more
        learnt = _span(rows, grid, state.next_label - memory, state.next_label, labelled=True)
        asked = _span(rows, grid, index, index + 1)
        state = state.model_copy(update={"next_cohort": index + 1})
        if len(asked.at) >= monitor.min_rows and len(learnt.at) >= monitor.min_labels:
            found = LossModel.fit(learnt.features, learnt.loss).estimate(asked.features)
            text = f"{MEASURE} about {found.mean:.4g} ± {found.error:.2g} (learnt from {len(learnt.at)} labels): "
            said.append(Said(index, MEASURE, "estimate", found.n, found.mean, None, None, text + BLIND))
            state = state.model_copy(update={"pending": state.pending | {index: {MEASURE: found}}})
    return post.conclude(
        monitor.kind,
        champion,
        state,
        range(begun, due),
        text=said[-1].text if said else "too few answers or labels to estimate",
        findings=[row_of(post, champion, grid, one, monitor) for one in said],
    )


def _span(rows: Answered, grid: Cohorts, first: int, end: int, *, labelled: bool = False) -> Answered:
    return rows.between(micros(grid.start(first)), micros(grid.start(end)), labelled=labelled)


def _settle(
    state: EstimateState, rows: Answered, grid: Cohorts, monitor: EstimateMonitor
) -> tuple[EstimateState, list[Said]]:
    """The state after the labels of its next cohort came, and whether they agree with what was estimated."""
    index = state.next_label
    loss = _span(rows, grid, index, index + 1, labelled=True).loss
    pending = {cohort: found for cohort, found in state.pending.items() if cohort > index}
    after = state.model_copy(update={"next_label": index + 1, "pending": pending})
    expected = state.pending.get(index, {}).get(MEASURE)
    if expected is None or not len(loss):
        return after, []
    return after, [settled(index, MEASURE, expected, float(loss.mean()), len(loss), monitor)]
